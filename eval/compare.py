"""``python eval/compare.py FOLDER ...`` in a checkout is ``st-jv5 compare``."""

from st_jv5.cli import compare

if __name__ == "__main__":
    compare()
