"""The command `kseg predict`, from a checkout: python scripts/predict.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("predict")
