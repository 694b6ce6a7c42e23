import numpy as np
import pytest
import tensorflow as tf

from kseg.classes import Classes
from kseg.commands.predict_tiles import _results
from kseg.errors import UserError
from kseg.serving.labeling import labeler


class Overflowing:
    """A network whose logits in float16 overflow for bright images."""

    classes = Classes(["dark", "bright"], [[0, 0, 0], [255, 255, 255]])

    def __call__(self, images):
        value = tf.cast(images[..., :1], "float16") * 300 - 30_000
        return tf.cast(tf.concat([-value, value], axis=-1), "float32")


@pytest.mark.parametrize("probabilities", [False, True])
def test_logits_that_are_not_finite_label_nothing(probabilities):
    label = labeler(Overflowing(), probabilities=probabilities)
    dark = np.full((2, 3, 4, 3), 50, "uint8")
    found = label(dark)
    np.testing.assert_array_equal(found[0] if probabilities else found, 0 * dark[..., 0])
    with pytest.raises(UserError, match=r"must be finite. Received: NaN or infinite.*float32"):
        label(np.concatenate([dark, dark + 200]))


def test_nor_do_those_of_a_tile():
    with pytest.raises(UserError, match="must be finite"):
        _results(np.full((2, 3, 2), np.nan), False, {"labels": None})
