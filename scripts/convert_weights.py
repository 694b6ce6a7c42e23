"""The command `kseg convert`, from a checkout: python scripts/convert_weights.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("convert")
