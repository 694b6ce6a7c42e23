"""scripts/train.py with the tiny backbone in the place of hrnet_w18_small."""

from kseg import backbones
from kseg.commands.__main__ import run
from tests.training.tiny import build_tiny_backbone

if __name__ == "__main__":
    backbones.BACKBONES["hrnet_w18_small"] = build_tiny_backbone
    run("train")
