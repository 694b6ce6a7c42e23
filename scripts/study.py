"""The command `kseg study`, from a checkout: python scripts/study.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("study")
