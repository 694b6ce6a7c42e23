"""scripts/train.py with the tiny backbone in the place of hrnet_w18_small."""

import pathlib
import sys

from kseg import backbones
from tests.training.tiny import build_tiny_backbone

if __name__ == "__main__":
    backbones.BACKBONES["hrnet_w18_small"] = build_tiny_backbone
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "scripts"))
    import _common
    import train

    _common.run(train.main)
