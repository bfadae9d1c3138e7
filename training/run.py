"""``python -m training.run RECIPE`` in a checkout is ``st-jv5 train RECIPE``."""

from st_jv5.cli import train

if __name__ == "__main__":
    train()
