import keras
import numpy as np
import pytest

from kseg import layers
from kseg.weights import load_torch_state


def model_and_state():
    inputs = keras.Input((None, None, 2))
    x = layers.ConvNorm(3, 1, name="stem")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="dense")(x), name="toy")
    kernel = np.arange(6.0).reshape((3, 2, 1, 1))  # (out, in, height, width)
    state = {
        "conv.weight": kernel,
        "bn.weight": np.full(3, 2.0),
        "bn.bias": np.full(3, 3.0),
        "bn.running_mean": np.full(3, 4.0),
        "bn.running_var": np.full(3, 5.0),
        "bn.num_batches_tracked": np.array(7),
        "fc.weight": np.arange(12.0).reshape((4, 3)),  # (out, in)
        "fc.bias": np.arange(4.0),
    }
    return model, state


PATHS = {
    "conv.weight": "stem/convolution/kernel",
    "bn.weight": "stem/normalization/gamma",
    "bn.bias": "stem/normalization/beta",
    "bn.running_mean": "stem/normalization/moving_mean",
    "bn.running_var": "stem/normalization/moving_variance",
    "fc.weight": "dense/kernel",
    "fc.bias": "dense/bias",
}


def test_every_array_finds_its_weight():
    model, state = model_and_state()
    report = load_torch_state(model, state, PATHS.get)
    assert report.loaded == PATHS
    assert list(report.unused) == ["bn.num_batches_tracked"]
    assert report.missing == []
    weights = {weight.path: weight.numpy() for weight in model.weights}
    np.testing.assert_array_equal(
        weights["stem/convolution/kernel"][0, 0], [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    )
    np.testing.assert_array_equal(weights["dense/kernel"][:, 1], [3.0, 4.0, 5.0])
    np.testing.assert_array_equal(weights["stem/normalization/moving_variance"], [5.0] * 3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fc.bias": None}, "dense/bias: no array"),
        (
            {"fc.weight": np.zeros((5, 3))},
            r"fc.weight: shape \(5, 3\) becomes \(3, 5\), but dense/kernel has \(3, 4\)",
        ),
        ({"head.weight": np.zeros(1)}, "head.weight: no rule for its name"),
        ({"second.bias": np.zeros(4)}, "second.bias: dense/bias is already taken by fc.bias"),
        ({"third.bias": np.zeros(4)}, "third.bias: the model has no weight other/bias"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_assigned(change, message):
    model, state = model_and_state()
    state = {name: array for name, array in {**state, **change}.items() if array is not None}
    paths = {**PATHS, "second.bias": "dense/bias", "third.bias": "other/bias"}
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        load_torch_state(model, state, paths.get)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_what_may_be_left_out():
    model, state = model_and_state()
    state["head.weight"] = state.pop("fc.weight")
    report = load_torch_state(
        model, state, PATHS.get, ignore=[r"head\."], allow_missing=["dense/kernel"]
    )
    assert report.unused["head.weight"] == r"ignored by 'head\\.'"
    assert report.missing == ["dense/kernel"]
