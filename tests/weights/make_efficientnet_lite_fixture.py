"""Writes fixtures/efficientnet_lite0.npz: python -m tests.weights.make_efficientnet_lite_fixture

Needs PyTorch and the package efficientnet-lite-pytorch; the test that reads the file does not.
Parameters are drawn from their names, so that the file holds outputs only, and few of them.
"""

import json
import pathlib

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from tests.weights.random_state import random_state


def pyramid(network, x):
    """The outputs before each stride, and the last."""
    levels = []
    x = network._swish(network._bn0(network._conv_stem(x)))
    for block in network._blocks:
        y = block(x)
        if y.shape[-1] < x.shape[-1]:
            levels.append(x)
        x = y
    return [*levels, network._swish(network._bn1(network._conv_head(x)))]


network = EfficientNet.from_name("efficientnet-lite0").eval().double()
shapes = {
    name: list(array.shape)
    for name, array in network.state_dict().items()
    if not name.endswith("num_batches_tracked")
}
state = {name: torch.from_numpy(array) for name, array in random_state(shapes).items()}
network.load_state_dict(state, strict=False)
image = np.random.default_rng(0).normal(size=(1, 3, 64, 96))
with torch.no_grad():
    levels = pyramid(network, torch.from_numpy(image.astype("float32")).double())
outputs = {
    f"c{index}": level.numpy()[:, :: max(level.shape[1] // 40, 1), ::4, ::4].astype("float32")
    for index, level in enumerate(levels, start=1)
    if index > 1
}
np.savez_compressed(
    pathlib.Path(__file__).parent / "fixtures" / "efficientnet_lite0.npz",
    shapes=np.array(json.dumps(shapes)),
    **outputs,
)
