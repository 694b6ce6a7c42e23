import keras
import numpy as np
import pytest

from kseg.analysis.grad_cam import ClassImages, GradCAM
from tests.analysis import tiny_segmenter


def expected(images, kernel, bias, number):
    """Grad-CAM of the tiny segmenter's `features` and `mean`, with derivatives by hand."""
    mean = images[:, ::4, ::4] / 255.0
    features = mean**2
    logits = features @ kernel + bias
    pixels = logits.argmax(-1) == number
    pixels |= ~pixels.any(axis=(1, 2), keepdims=True)
    result = {}
    # dS/d features is the kernel where a pixel counts; with respect to the mean, 2 mean times it.
    for stage, values, inner in (("features", features, 1.0), ("mean", mean, 2 * mean)):
        gradient = pixels[..., None] * kernel[:, number] * inner
        weights = gradient.mean(axis=(1, 2), keepdims=True)
        heat = np.maximum((weights * values).sum(-1), 0)
        peak = heat.max(axis=(1, 2), keepdims=True)
        result[stage] = heat / np.where(peak > 0, peak, 1)
    return result


@pytest.mark.parametrize("bias", [(0.0, 0.1, -0.2), (0.0, -9.0, 0.0)])  # Class 1: never predicted.
@pytest.mark.parametrize("number", [0, 1])
def test_equals_the_derivation_by_hand(bias, number):
    segmenter, kernel = tiny_segmenter.build(bias)
    images, _ = tiny_segmenter.images(2)
    result = GradCAM(segmenter, ("mean", "features"))(images, number)
    for stage, heat in expected(images, kernel, np.array(bias), number).items():
        np.testing.assert_allclose(result[stage], heat, rtol=1e-4, atol=1e-6)
        assert result[stage].max() == pytest.approx(1)


def test_frozen_weights_make_no_difference():
    segmenter, _ = tiny_segmenter.build()
    images, _ = tiny_segmenter.images(1)
    before = GradCAM(segmenter)(images, 2)["features"]
    segmenter.trainable = False
    np.testing.assert_array_equal(GradCAM(segmenter)(images, 2)["features"], before)


def test_zero_without_evidence_for_a_class():
    segmenter, _ = tiny_segmenter.build()
    heat = GradCAM(segmenter)(np.zeros((1, 8, 8, 3), "uint8"), 0)["features"]
    np.testing.assert_array_equal(heat, np.zeros((1, 2, 2)))


def test_a_stage_that_no_logit_comes_from():
    segmenter, _ = tiny_segmenter.build()
    unused = keras.layers.Rescaling(2.0)(segmenter.output["mean"])
    segmenter = keras.Model(segmenter.input, {**segmenter.output, "unused": unused})
    result = GradCAM(segmenter, ("unused", "features"))(tiny_segmenter.images(1)[0], 2)
    assert result["unused"].max() == 0
    assert result["features"].max() == 1


def test_names_a_missing_stage():
    segmenter, _ = tiny_segmenter.build()
    with pytest.raises(
        ValueError, match=r"the map 'c9'. It returns: \['features', 'logits', 'mean'"
    ):
        GradCAM(segmenter, ("c9",))


def test_the_image_with_most_of_each_class():
    labels = np.array([[[0, 0, 1]], [[0, 1, 1]], [[255, 3, 1]]], "uint8")
    images = np.arange(3, dtype="uint8")[:, None, None, None] * np.ones((1, 1, 3, 3), "uint8")
    result = ClassImages(3)
    result.add("ab", images[:2], labels[:2])
    result.add("c", images[2:], labels[2:])
    assert {n: name for n, (name, _) in result.images().items()} == {0: "a", 1: "b"}
    np.testing.assert_array_equal(result.images()[1][1], images[1])
