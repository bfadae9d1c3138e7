"""``python -m st_jv5`` is ``st-jv5``; so ``torchrun -m st_jv5 train RECIPE`` works, too."""

from st_jv5.cli import main

if __name__ == "__main__":
    main()
