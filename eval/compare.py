"""``python eval/compare.py FOLDER ...`` in a checkout is ``st-jv5 compare FOLDER ...``."""

from st_jv5.evaluation.compare import main

if __name__ == "__main__":
    main()
