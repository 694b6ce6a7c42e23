"""The command `kseg export`, from a checkout: python scripts/export.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("export")
