"""``python eval/run_mteb.py --model MODEL ...`` in a checkout is ``st-jv5 eval``."""

from st_jv5.cli import evaluate

if __name__ == "__main__":
    evaluate()
