"""The command `kseg evaluate`, from a checkout: python scripts/evaluate.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("evaluate")
