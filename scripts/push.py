"""The command `kseg push`, from a checkout: python scripts/push.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("push")
