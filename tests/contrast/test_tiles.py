"""Tile sizes by device."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.contrast import tiles
from kseg.contrast.info_nce import info_nce
from tests import on_backend

WITHOUT_TILES = {name for name in on_backend.objectives() if name.startswith("contextrast")}


@pytest.mark.parametrize(
    "anchors, keys, dim, expected",
    [
        (152, 56_525, 256, (152, 56_525)),  # RegionContrast on Cityscapes: one tile.
        (1024, 4096, 256, (1024, 4096)),
        (10_000, 10_000, 256, (5792, 5793)),  # 2^12.5 x 2^12.5, so that two by two suffice.
        (1, 10**6, 256, (1, 2**17)),  # The keys that are read are 128 MiB, too.
        (10**6, 8, 256, (10**6, 8)),
        (1, 1, 2**26, (1, 1)),
    ],
)
def test_on_an_accelerator(anchors, keys, dim, expected):
    rows, columns = tiles.tile_sizes(anchors, keys, dim, on_cpu=512, accelerator=True)
    assert (rows, columns) == expected
    assert rows * columns <= 2**25


def test_on_a_cpu():
    assert tiles.tile_sizes(9, 9, 9, on_cpu=512, accelerator=False) == (512, 512)
    assert tiles.tile_sizes(9, 9, 9, on_cpu=(256, 1024), accelerator=False) == (256, 1024)
    assert tiles.held_similarities(False) == 2**24 < tiles.held_similarities(True)


def test_the_device_decides():
    assert tiles.on_accelerator() == bool(tf.config.list_logical_devices("GPU"))
    with on_backend.tiles_of_an_accelerator(100):
        assert tiles.tile_sizes(50, 50, 4, on_cpu=16) == (10, 10)
        assert tiles.held_similarities() == 100


@pytest.mark.parametrize("name", sorted(set(on_backend.objectives()) - WITHOUT_TILES))
def test_every_objective_is_the_same_in_other_tiles(name):
    (first, first_labels), (outputs, labels) = on_backend.example(1), on_backend.example(0)

    def run():
        objective = on_backend.objectives()[name]
        objective.prepare(first)
        with on_backend.without_chance():
            objective.remember(objective.contrast(first, first_labels)[1])
            return on_backend.value_and_gradient(
                lambda x, y: sum(objective.contrast(x, y)[0].values()), outputs, labels
            )

    value, gradients = run()
    with on_backend.tiles_of_an_accelerator():
        other, other_gradients = run()
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert any(np.abs(g).max() > 0 for g in gradients.values())
    for key, gradient in gradients.items():
        np.testing.assert_allclose(other_gradients[key], gradient, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_the_loss_chooses_its_tiles_too(reduction):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 4)).astype("float32")
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    labels = np.sort(rng.integers(0, 4, 60)).astype("int32")
    expected = info_nce(z, labels, z, labels, reduction=reduction, block_size=60)
    with on_backend.tiles_of_an_accelerator(400):
        result = info_nce(z, labels, z, labels, reduction=reduction)
    for x, y in zip(result, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
