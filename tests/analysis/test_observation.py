import numpy as np
import pytest
import tensorflow as tf

from kseg.analysis.observation import observe
from tests.analysis import tiny_segmenter


@pytest.mark.parametrize("unit_norm", [True, False])
def test_observed_values(unit_norm):
    segmenter, kernel = tiny_segmenter.build(bias=(0, 0, 0))
    images, labels = tiny_segmenter.images(3)
    batches = [
        {"image": tf.constant(images[part]), "label": tf.constant(labels[part])}
        for part in (slice(0, 2), slice(2, 3))
    ]
    done = []
    seen = list(observe(segmenter, batches, unit_norm=unit_norm, progress=done.append))
    assert done == [2, 3]
    assert [view.ids for view in seen] == [["0", "1"], ["2"]]
    features = (images[:, ::4, ::4] / 255.0) ** 2
    logits = features @ kernel
    if unit_norm:
        features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    result = np.concatenate([view.features for view in seen])
    np.testing.assert_allclose(result, features, rtol=1e-4, atol=1e-6)
    result = np.concatenate([view.feature_labels for view in seen])
    np.testing.assert_array_equal(result, labels[:, ::4, ::4])
    # At the corners of the image the bilinear weight of the block's own logits is 1.
    result = np.concatenate([view.predictions for view in seen])
    assert result.shape == labels.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(
        result[:, [0, 0, -1, -1], [0, -1, 0, -1]],
        logits.argmax(-1)[:, [0, 0, -1, -1], [0, -1, 0, -1]],
    )
    np.testing.assert_array_equal(np.concatenate([view.images for view in seen]), images)


def test_names_of_the_images():
    segmenter, _ = tiny_segmenter.build()
    images, labels = tiny_segmenter.images(2)
    batch = {"image": images, "label": labels, "id": tf.constant(["left", "right"])}
    assert next(observe(segmenter, [batch])).ids == ["left", "right"]


def test_takes_batch_after_batch():
    segmenter, _ = tiny_segmenter.build()
    images, labels = tiny_segmenter.images(1)
    given = []

    def batches():
        for number in range(5):
            given.append(number)
            yield {"image": images, "label": labels}

    views = observe(segmenter, batches())
    assert given == []
    for expected in ([0], [0, 1]):
        next(views)
        assert given == expected
