import functools

import numpy as np
import pytest
import tensorflow as tf

from kseg.losses.rmi import rmi_loss
from tests.losses import checks

SETTINGS = [
    {},
    {"region_size": 2, "downsampling": 3, "pixel_weight": 0.0},
    {"region_size": 1, "downsampling": 1, "pixel_weight": 0.3},
    {"pixel_weight": 1.0},
]


def loop(labels, logits, region_size=3, downsampling=4, pixel_weight=0.5):
    """The definition, region by region."""
    num_classes = logits.shape[-1]
    valid = (labels >= 0) & (labels < num_classes)
    y = np.eye(num_classes)[np.where(valid, labels, 0)] * valid[..., None]
    p = 1 / (1 + np.exp(-logits.astype("float64")))
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(-1)
    pixel = each[valid].mean() if valid.any() else 0.0
    if pixel_weight == 1:
        return pixel
    d = region_size**2
    values = []
    for image in range(len(labels)):
        total = 0.0
        for n in range(num_classes):
            points = []
            for x in (y, p * valid[..., None]):
                x = x[image, :, :, n]
                rows, columns = (length // downsampling for length in x.shape)
                cells = np.array(
                    [
                        [
                            x[
                                i * downsampling : (i + 1) * downsampling,
                                j * downsampling : (j + 1) * downsampling,
                            ].mean()
                            for j in range(columns)
                        ]
                        for i in range(rows)
                    ]
                )
                regions = np.array(
                    [
                        cells[i : i + region_size, j : j + region_size].ravel()
                        for i in range(rows - region_size + 1)
                        for j in range(columns - region_size + 1)
                    ]
                )
                points.append(regions - regions.mean(0))
            a, b = points
            e = 5e-4 * np.eye(d)
            rest = a.T @ a - a.T @ b @ np.linalg.inv(b.T @ b + e) @ b.T @ a + e
            total += 0.5 * np.linalg.slogdet(rest)[1] / d
        values.append(total)
    return pixel_weight * pixel + (1 - pixel_weight) * np.mean(values)


def example(seed=0, size=(2, 26, 37), num_classes=3):
    """Labels in blocks, one class absent, and logits that follow them."""
    rng = np.random.default_rng(seed)
    batch, height, width = size
    blocks = rng.integers(0, num_classes - 1, (batch, height // 5 + 1, width // 5 + 1))
    labels = np.kron(blocks, np.ones((5, 5), int))[:, :height, :width]
    logits = 2.0 * np.eye(num_classes)[labels] - 1.0 + rng.normal(size=(*size, num_classes))
    labels[rng.random(size) < 0.1] = 255
    labels[0, 0, 0] = -1
    return labels, logits.astype("float32")


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_those_of_the_definition(settings):
    labels, logits = example()
    loss = functools.partial(rmi_loss, **settings)
    value, gradient = checks.value_and_gradient(loss, labels, logits)
    definition = functools.partial(loop, **settings)
    np.testing.assert_allclose(value, definition(labels, logits), rtol=1e-5)
    indices, expected = checks.slopes(definition, labels, logits, step=1e-5, count=12)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient[indices], expected, rtol=2e-3, atol=1e-4 * scale)
    assert not gradient[(labels < 0) | (labels > 2)].any()


def test_certain_predictions_are_computed_in_double_precision():
    # Almost equal covariances: what is left of their difference is lost in float32.
    labels, logits = example(size=(1, 120, 160))
    sure = (200.0 * np.eye(3)[np.where(labels < 3, labels, 0)] - 100.0).astype("float32")
    settings = {"pixel_weight": 0.0}
    value, gradient = checks.value_and_gradient(
        functools.partial(rmi_loss, **settings), labels, sure
    )
    expected = loop(labels, np.clip(sure, -30, 30), **settings)
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    assert np.isfinite(gradient).all()
    assert value < rmi_loss(labels, logits, **settings)  # More of the labels is explained.


@pytest.mark.parametrize("label", [255, -1])
def test_nothing_valid_has_no_gradient(label):
    logits = np.ones((1, 12, 12, 2), "float32")
    value, gradient = checks.value_and_gradient(rmi_loss, np.full((1, 12, 12), label), logits)
    # All points are equal: M is the small diagonal of both classes.
    np.testing.assert_allclose(value, 0.5 * 2 * 0.5 * np.log(5e-4), rtol=1e-5)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits(dtype):
    labels, logits = example()
    rounded = tf.cast(logits, dtype)
    loss = rmi_loss(labels, rounded)
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, loop(labels, tf.cast(rounded, "float32").numpy()), rtol=1e-5)


def test_coarse_logits_are_resized_and_graphs_agree():
    labels = example(size=(1, 12, 16))[0]
    logits = example(size=(1, 6, 8))[1]
    settings = {"region_size": 2, "downsampling": 2}
    expected = loop(labels, tf.image.resize(logits, (12, 16)).numpy(), **settings)
    for jit_compile in (False, True):
        loss = functools.partial(rmi_loss, **settings)
        compiled = tf.function(loss, jit_compile=jit_compile)
        np.testing.assert_allclose(compiled(labels, logits), expected, rtol=1e-5)


def test_two_replicas_are_one_with_the_whole_batch(mirrored):
    labels, logits = example(size=(4, 24, 24))
    labels[2:, :15] = 255
    value, gradient = checks.of_two_replicas(mirrored, rmi_loss, labels, logits)
    expected, expected_gradient = checks.value_and_gradient(rmi_loss, labels, logits)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-7)


def test_a_nan_is_a_loss_that_is_not_finite():
    labels, logits = example()
    labels[0, 0, 1], logits[0, 0, 1] = 0, np.nan
    for weight in (0.0, 0.5):
        assert np.isnan(rmi_loss(labels, logits, pixel_weight=weight))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region_size": 0}, r"must be 1 or more.*region_size=0"),
        ({"pixel_weight": 1.5}, r"0 to 1.*pixel_weight=1\.5"),
        ({"downsampling": 9}, r"as large as a region, 3 x 9 pixels\. .* Use a larger crop"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        rmi_loss(*example(), **settings)
