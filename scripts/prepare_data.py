"""The command `kseg prepare`, from a checkout: python scripts/prepare_data.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("prepare")
