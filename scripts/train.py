"""The command `kseg train`, from a checkout: python scripts/train.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("train")
