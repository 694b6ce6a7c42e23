"""The command `kseg serve`, from a checkout: python scripts/serve.py --help"""

from kseg.commands.__main__ import run

if __name__ == "__main__":
    run("serve")
