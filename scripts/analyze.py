"""The command `kseg analyze`, from a checkout: python scripts/analyze.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("analyze")
