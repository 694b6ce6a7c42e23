"""Creation of many variables at once."""

import keras
import numpy as np

from kseg.backend.variables import shared_variable_kernels
from kseg.segmenters import build_segmenter
from tests.tiny_networks import tiny_resnet


def build(name):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="first")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="second")(x), name=name)


def test_only_the_names_that_tensorflow_sees_are_short():
    keras.utils.set_random_seed(1)
    with shared_variable_kernels():
        short = build("short")
    keras.utils.set_random_seed(1)
    long = build("long")
    assert [v.path for v in short.variables] == [v.path for v in long.variables]
    assert [v.value.name for v in short.variables] == ["kernel:0", "bias:0"] * 2
    assert [v.value.name for v in long.variables] == [f"{v.path}:0" for v in long.variables]
    for found, expected in zip(short.get_weights(), long.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_replicas_have_variables_of_their_own(mirrored):
    with mirrored.scope(), shared_variable_kernels():
        model = build("replicated")
    kernels = [model.get_layer(name).kernel.value for name in ("first", "second")]
    assert len({id(part) for kernel in kernels for part in kernel.values}) == 4
    kernels[0].assign(np.ones((4, 3)))
    for part in kernels[0].values:
        np.testing.assert_array_equal(part, np.ones((4, 3)))
    assert not np.array_equal(kernels[1].values[1], np.ones((3, 3)))


def test_segmenters_are_built_in_it():
    backbone = tiny_resnet()
    segmenter = build_segmenter(backbone, "deeplabv3", 2, head_arguments={"channels": 4})
    before = {id(v) for v in backbone.variables}
    names = {v.value.name: v.path for v in segmenter.variables if id(v) not in before}
    assert len(names) > 3
    assert not [name for name in names if "/" in name]
