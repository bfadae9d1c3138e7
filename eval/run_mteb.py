"""``python eval/run_mteb.py --model MODEL ...`` in a checkout is ``st-jv5 eval MODEL ...``."""

from st_jv5.evaluation.run_mteb import main

if __name__ == "__main__":
    main()
