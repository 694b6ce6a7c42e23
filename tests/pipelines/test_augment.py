import numpy as np
import pytest
import tensorflow as tf

from pipelines import augment


def windows(size, crop_size, scale_range, count=200):
    numbers = np.random.default_rng(0).random((count, 3), dtype="float32")
    for row in numbers:
        _, extent, shape = augment.draw_extent(row[0], tf.constant(size), crop_size, scale_range)
        first = augment.draw_place(row[1:], tf.constant(size), extent)
        yield row, *(part.numpy() for part in (first, extent, shape))


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
    size = tf.constant([9, 8])
    _, extent, shape = augment.draw_extent(0.0, size, (9, 4), (2.0, 3.0))
    first = augment.draw_place(tf.constant([below_one, below_one]), size, extent)
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
    np.testing.assert_allclose(augment.resize_image(image, shape), values, atol=0.502)


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
    """Resizing to an odd multiple maps centres to centres."""
    labels = np.random.default_rng(0).integers(0, 200, (6, 5)).astype("uint8")
    window = [tf.constant(v) for v in ([0, 0], [6, 5], [18, 15])]
    image = augment.resize_image(np.repeat(labels[..., None], 3, axis=-1), window[2])
    resized = augment.resize_labels(labels, *window)
    np.testing.assert_array_equal(image[1::3, 1::3, 0], labels)
    np.testing.assert_array_equal(resized[1::3, 1::3], labels)


@pytest.mark.parametrize(
    "labels, expected",
    [([[0, 1], [1, 255]], 2 / 3), ([[3, 3], [3, 3]], 1.0), ([[255, 255], [255, 255]], 1.0)],
)
def test_largest_share(labels, expected):
    found = augment.largest_share(tf.constant(labels, "uint8"))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def turn(values, first, wanted, angle, crop_size, color, interpolation="BILINEAR"):
    """Follows the loader: decode the box, turn it."""
    size = tf.constant(values.shape[:2])
    arguments = tf.constant(first), tf.constant(wanted)
    box = augment.rotated_box(*arguments, size, angle)
    (top, left), (rows, columns) = (part.numpy() for part in box[:2])
    inside = values[top : top + rows, left : left + columns]
    return augment.rotate(
        tf.constant(inside), *arguments, box, angle, crop_size, color, interpolation
    ).numpy()


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("interpolation", ["BILINEAR", "NEAREST"])
def test_quarter_turns(quarters, interpolation):
    """A square window turned by right angles: the pixels of `rot90`."""
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype("uint8")
    angle = tf.constant(quarters * np.pi / 2, "float32")
    found = turn(image, (5, 6), (8, 8), angle, (8, 8), [0, 0, 0], interpolation)
    np.testing.assert_array_equal(found, np.rot90(image[5:13, 6:14], quarters))


def test_no_turn_is_a_resize():
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype("uint8")
    found = turn(image, (3, 4), (10, 12), tf.constant(0.0), (15, 9), [0, 0, 0])
    expected = augment.resize_image(tf.constant(image[3:13, 4:16]), (15, 9)).numpy()
    # At the edges a turn sees the pixels beyond them.
    np.testing.assert_allclose(found[1:-1, 1:-1].astype(int), expected[1:-1, 1:-1], atol=1)


def test_what_a_turn_brings_in_from_beyond_the_image():
    image = np.full((10, 10, 3), 200, "uint8")
    found = turn(image, (0, 0), (10, 10), tf.constant(np.pi / 4, "float32"), (10, 10), [1, 2, 3])
    np.testing.assert_array_equal(found[0, 0], [1, 2, 3])
    np.testing.assert_array_equal(found[5, 5], [200] * 3)
    # A corner at 45 degrees is beyond where |x| + |y| > sqrt(2) * 5, counted from the middle.
    y, x = np.mgrid[:10, :10] - 4.5
    beyond = np.abs(x) + np.abs(y) > np.sqrt(2) * 5 + 1
    assert (found[beyond] == [1, 2, 3]).all()
    assert (found[np.abs(x) + np.abs(y) < np.sqrt(2) * 5 - 1] == 200).all()


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

    def apply(numbers):
        size = tf.constant((33, 47))
        _, extent, shape = augment.draw_extent(numbers[0], size, (30, 40), (0.5, 2.0))
        first = augment.draw_place(numbers[1:3], size, extent)
        window = tf.slice(image, tf.concat([first, [0]], 0), tf.concat([extent, [3]], 0))
        labels = augment.resize_labels(tf.constant(image[..., 0]), first, extent, shape)
        resized = augment.resize_image(window, shape)
        return augment.pad_to(*augment.mirror(resized, labels), (30, 40))

    numbers = np.random.default_rng(1).random((12, 4), dtype="float32")
    dataset = tf.data.Dataset.from_tensor_slices(numbers).map(apply)
    for row, (mapped_image, mapped_labels) in zip(numbers, dataset, strict=True):
        eager_image, eager_labels = apply(tf.constant(row))
        np.testing.assert_array_equal(mapped_labels, eager_labels)
        # Fused arithmetic may round a half the other way.
        assert np.abs(mapped_image.numpy().astype(int) - eager_image.numpy()).max() <= 1
