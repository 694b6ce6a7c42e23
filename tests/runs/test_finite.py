import keras
import numpy as np
import pytest

from kseg import serving
from kseg.classes import Classes
from kseg.errors import UserError
from kseg.runs.finite import describe_non_finite
from kseg.serving.onnx import export_onnx


def test_the_first_is_named_and_all_are_counted():
    values = {
        "whole": np.array([1, 2]),
        "sound": np.ones((2, 2), "float32"),
        "nan": keras.Variable([1.0, np.nan]),
        "seed": keras.Variable([1, 2], dtype="uint32", trainable=False),
        "small": keras.Variable([1.0, np.inf], dtype="bfloat16"),
        "last": np.array([np.nan], "float16"),
    }
    assert describe_non_finite(values) == "'nan' and 2 more of 6 arrays"
    assert describe_non_finite({"a": values["nan"]}) == "'a' of 1 arrays"
    assert describe_non_finite({name: values[name] for name in ("whole", "sound", "seed")}) is None


def test_a_network_with_nan_is_not_exported(tmp_path):
    image = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(2, 1, name="classifier")(image)
    model = keras.Model(image, {"logits": logits})
    model.weights[0].assign(np.full(model.weights[0].shape, np.nan))
    classes = Classes(["a", "b"], [[0, 0, 0], [1, 1, 1]])
    for write in (
        lambda path: serving.export_saved_model(model, path, classes),
        lambda path: export_onnx(model, path.with_suffix(".onnx"), classes),
    ):
        with pytest.raises(UserError, match="'classifier/kernel' of 2 arrays are not"):
            write(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
