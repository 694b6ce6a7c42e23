"""The command `kseg init`, from a checkout: python scripts/init.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("init")
