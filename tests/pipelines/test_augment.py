import numpy as np
import pytest
import tensorflow as tf

from pipelines import augment


def windows(size, crop_size, scale_range, count=200):
    numbers = np.random.default_rng(0).random((count, 3), dtype="float32")
    for row in numbers:
        window = augment.draw_window(row, tf.constant(size), crop_size, scale_range)
        yield row, *(part.numpy() for part in window)


def test_window_lies_in_the_image_at_the_drawn_scale():
    size, crop_size, (low, high) = (50, 70), (30, 40), (0.5, 2.0)
    for numbers, first, extent, shape in windows(size, crop_size, (low, high)):
        scale = low + (high - low) * numbers[0]
        assert (first >= 0).all() and (first + extent <= size).all()
        for axis in (0, 1):
            if crop_size[axis] / scale <= size[axis] - 0.5:
                assert shape[axis] == crop_size[axis]
            else:
                assert extent[axis] == size[axis]
                assert shape[axis] <= crop_size[axis]
            # Both are rounded to whole pixels, the extent by half a pixel at most.
            assert abs(shape[axis] - extent[axis] * scale) <= 0.5 * scale + 0.51


def test_every_place_is_as_likely():
    places = [first for _, first, *_ in windows((12, 11), (10, 10), (1, 1), count=1000)]
    for axis, room in ((0, 3), (1, 2)):
        counts = np.bincount(np.array(places)[:, axis], minlength=room)
        assert len(counts) == room
        # Within five standard deviations of a binomial.
        p = 1 / room
        np.testing.assert_allclose(counts, 1000 * p, atol=5 * (1000 * p * (1 - p)) ** 0.5)


def test_window_at_the_ends_of_the_draw():
    below_one = np.nextafter(np.float32(1), np.float32(0))
    numbers = tf.constant([0.0, below_one, below_one])
    first, extent, shape = augment.draw_window(numbers, tf.constant([9, 8]), (9, 4), (2.0, 3.0))
    np.testing.assert_array_equal(extent, [4, 2])  # Half of 9 rounds to even.
    np.testing.assert_array_equal(first, [5, 6])
    np.testing.assert_array_equal(shape, [9, 4])


def sample(values, position):
    """Linear interpolation along the first axis, the ends continued."""
    low = int(np.floor(position))
    weight = position - low
    low, high = (min(max(i, 0), len(values) - 1) for i in (low, low + 1))
    return (1 - weight) * values[low] + weight * values[high]


@pytest.mark.parametrize("shape", [(5, 7), (11, 4), (3, 13), (6, 6)])
def test_resize_image(shape):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype("uint8")
    values = image.astype("float64")
    for length in shape:  # Rows, then columns.
        rows = [(i + 0.5) * len(values) / length - 0.5 for i in range(length)]
        values = np.stack([sample(values, row) for row in rows]).swapaxes(0, 1)
    np.testing.assert_allclose(augment.resize_image(image, shape), values, atol=2e-3)


@pytest.mark.parametrize("shape", [(4, 6), (9, 3), (2, 11), (1, 1)])
def test_resize_labels(shape):
    labels = np.random.default_rng(0).integers(0, 256, (9, 12)).astype("uint8")
    (top, left), (rows, columns) = first, extent = (2, 1), (4, 6)
    expected = [
        [
            labels[
                top + int(np.floor((i + 0.5) * rows / shape[0])),
                left + int(np.floor((j + 0.5) * columns / shape[1])),
            ]
            for j in range(shape[1])
        ]
        for i in range(shape[0])
    ]
    found = augment.resize_labels(labels, *map(tf.constant, (first, extent, shape)))
    np.testing.assert_array_equal(found, expected)


def test_labels_are_the_nearest_pixels_of_the_image():
    """Where the image is resized to an odd multiple, centres fall on centres."""
    labels = np.random.default_rng(0).integers(0, 200, (6, 5)).astype("uint8")
    window = [tf.constant(v) for v in ([0, 0], [6, 5], [18, 15])]
    image = augment.resize_image(np.repeat(labels[..., None], 3, axis=-1), window[2])
    resized = augment.resize_labels(labels, *window)
    np.testing.assert_allclose(image[1::3, 1::3, 0], labels, atol=1e-3)
    np.testing.assert_array_equal(resized[1::3, 1::3], labels)


STILL = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
LUMA = np.array([0.299, 0.587, 0.114])


def apply_jitter(color, numbers, mean_luma=0.0, **strengths):
    matrix, offset = augment.color_matrix(
        tf.constant(numbers, "float32"), tf.constant(mean_luma), **{**STILL, **strengths}
    )
    return np.array(color) @ matrix.numpy() + offset.numpy()


COLOR = [200.0, 90.0, 30.0]


def test_no_jitter():
    np.testing.assert_allclose(apply_jitter(COLOR, [0.1, 0.9, 0.3, 0.8]), COLOR, rtol=1e-5)
    middle = apply_jitter(COLOR, [0.5] * 4, 50.0, brightness=1, contrast=1, saturation=1, hue=1)
    np.testing.assert_allclose(middle, COLOR, rtol=1e-5)


@pytest.mark.parametrize(
    "index, strengths, expected",
    [
        # Number 0.25 and strength 0.4 make the factor 1 - 0.4 / 2.
        (0, {"brightness": 0.4}, 0.8 * np.array(COLOR)),
        (1, {"contrast": 0.4}, 100 + 0.8 * (np.array(COLOR) - 100)),
        (2, {"saturation": 0.4}, LUMA @ COLOR + 0.8 * (np.array(COLOR) - LUMA @ COLOR)),
    ],
)
def test_one_strength(index, strengths, expected):
    numbers = np.full(4, 0.9)
    numbers[index] = 0.25
    # The chroma matrices of the standard have three digits.
    np.testing.assert_allclose(
        apply_jitter(COLOR, numbers, 100.0, **strengths), expected, rtol=2e-3
    )


def test_hue_turns_chroma_and_keeps_luma_and_grey():
    def turn(color, number):
        return apply_jitter(color, [0.5, 0.5, 0.5, number], hue=0.5)

    np.testing.assert_allclose(turn([80.0] * 3, 0.2), [80.0] * 3, rtol=2e-3)
    turned = turn(COLOR, 0.7)
    np.testing.assert_allclose(LUMA @ turned, LUMA @ COLOR, rtol=2e-3)
    assert np.abs(turned - COLOR).max() > 20
    # A turn and the opposite one.
    np.testing.assert_allclose(turn(turned, 0.3), COLOR, rtol=2e-3)
    # Half a turn: the complement, luma - (color - luma).
    np.testing.assert_allclose(turn(COLOR, 1.0), 2 * (LUMA @ COLOR) - COLOR, rtol=1e-2, atol=0.5)


def test_contrast_is_about_the_mean_luma_of_the_image():
    image = np.random.default_rng(0).uniform(0, 255, (4, 6, 3)).astype("float32")
    numbers = tf.constant([0.5, 0.0, 0.5, 0.5])
    jittered = augment.jitter_colors(image, numbers, {**STILL, "contrast": 1.0})
    mean = (image @ LUMA).mean()
    np.testing.assert_allclose(jittered, np.full_like(image, mean), rtol=1e-4)


def test_to_uint8_rounds_and_cuts_off():
    values = tf.constant([-3.0, 0.4, 0.6, 254.4, 254.6, 300.0])
    np.testing.assert_array_equal(augment.to_uint8(values), [0, 0, 1, 254, 255, 255])


@pytest.mark.parametrize("size", [(4, 6), (3, 6), (4, 2), (1, 1)])
def test_pad(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype("uint8")
    labels = rng.integers(0, 9, size).astype("uint8")
    expected_image = np.tile(np.uint8(augment.PAD_COLOR), (4, 6, 1))
    expected_labels = np.full((4, 6), 255)
    expected_image[: size[0], : size[1]] = image
    expected_labels[: size[0], : size[1]] = labels
    tensors = map(tf.constant, (image, labels))
    padded_image, padded_labels = augment.pad_to(*tensors, (4, 6))
    np.testing.assert_array_equal(padded_image, expected_image)
    np.testing.assert_array_equal(padded_labels, expected_labels)


def test_mirror():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype("uint8")
    mirrored, labels = augment.mirror(tf.constant(image), tf.constant(image[..., 1]))
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    np.testing.assert_array_equal(labels, image[:, ::-1, 1])


def test_the_same_in_a_dataset_as_eagerly():
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype("uint8")
    strengths = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}

    def apply(numbers):
        first, extent, shape = augment.draw_window(numbers, (33, 47), (30, 40), (0.5, 2.0))
        window = tf.slice(image, tf.concat([first, [0]], 0), tf.concat([extent, [3]], 0))
        color = augment.jitter_colors(augment.resize_image(window, shape), numbers, strengths)
        labels = augment.resize_labels(tf.constant(image[..., 0]), first, extent, shape)
        return augment.pad_to(*augment.mirror(augment.to_uint8(color), labels), (30, 40))

    numbers = np.random.default_rng(1).random((12, 4), dtype="float32")
    dataset = tf.data.Dataset.from_tensor_slices(numbers).map(apply)
    for row, (mapped_image, mapped_labels) in zip(numbers, dataset, strict=True):
        eager_image, eager_labels = apply(tf.constant(row))
        np.testing.assert_array_equal(mapped_labels, eager_labels)
        # Fused arithmetic may round a half the other way.
        assert np.abs(mapped_image.numpy().astype(int) - eager_image.numpy()).max() <= 1
