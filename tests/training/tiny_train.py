"""scripts/train.py with the tiny backbone in the place of hrnet_w18_small."""

from kseg import backbones
from kseg.commands.__main__ import run
from tests.tiny_networks import tiny_backbone

if __name__ == "__main__":
    backbones.BACKBONES["hrnet_w18_small"] = tiny_backbone
    run("train")
