import keras
import numpy as np
import pytest

from kseg.heads import build_head
from kseg.heads.deeplabv3 import BroadcastLike
from kseg.weights import load_torch_state
from kseg.weights.deeplabv3 import name_map
from tests.golden_file import Golden


def head(channels_in, num_classes, **arguments):
    """Only the head, with the same map as every stage."""
    x = keras.Input((None, None, channels_in))
    outputs = build_head(
        "deeplabv3", dict.fromkeys(("c2", "c3", "c4", "c5"), x), num_classes, **arguments
    )
    return keras.Model(x, outputs)


def with_inner(model, **names):
    inner = {key: model.get_layer(name).output for key, name in names.items()}
    return keras.Model(model.input, {**model.output, **inner})


def test_region_contrast():
    golden = Golden("aspp_regioncontrast")
    # The reference's fused map always has 256 channels, its branches have 4 here.
    x = keras.Input((None, None, 8))
    outputs = build_head(
        "deeplabv3", dict.fromkeys(("c2", "c3", "c4", "c5"), x), 5, channels=256, aspp_channels=4
    )
    model = with_inner(keras.Model(x, outputs), aspp="deeplabv3_aspp_concatenate")
    load_torch_state(model, golden.state, name_map, allow_missing=[r"deeplabv3_aux"])
    for case in golden.cases:
        golden.compare(case, model, {"aspp": "aspp", "logits": "logits"})


def test_torchvision():
    golden = Golden("aspp_torchvision")
    model = with_inner(
        head(8, 5, channels=6, aspp_channels=6, project=True), aspp="deeplabv3_project"
    )
    state = {f"classifier.0.{name}": array for name, array in golden.state.items()}
    load_torch_state(model, state, name_map, allow_missing=[r"deeplabv3_(aux|fusion|logits)"])
    for case in golden.cases:
        golden.compare(case, model, {"aspp": "aspp"})


@pytest.mark.parametrize("project", [False, True])
def test_outputs(project):
    c4, c5 = keras.Input((None, None, 6)), keras.Input((None, None, 8))
    outputs = build_head(
        "deeplabv3",
        {"c2": c4, "c3": c4, "c4": c4, "c5": c5},
        5,
        channels=4,
        rates=(2, 3),
        project=project,
    )
    model = keras.Model([c4, c5], outputs)
    maps = model([np.ones((2, 9, 7, 6), "float32"), np.ones((2, 5, 4, 8), "float32")])
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "logits": (2, 5, 4, 5),
        "aux_logits": (2, 9, 7, 5),
        "features": (2, 5, 4, 4),
    }


def test_broadcast_like():
    vector = np.arange(6.0, dtype="float32").reshape((2, 1, 1, 3))
    result = BroadcastLike()(vector, np.zeros((2, 4, 5, 1), "float32"))
    np.testing.assert_array_equal(result, np.broadcast_to(vector, (2, 4, 5, 3)))


def test_broadcast_like_loads_under_its_earlier_name():
    values = keras.saving.serialize_keras_object(BroadcastLike(name="mean"))
    assert (values["class_name"], values["registered_name"]) == (
        "BroadcastLike",
        "kseg>BroadcastLike",
    )
    values.update(class_name="Spread", registered_name="kseg>Spread")
    layer = keras.saving.deserialize_keras_object(values)
    assert isinstance(layer, BroadcastLike) and layer.name == "mean"
