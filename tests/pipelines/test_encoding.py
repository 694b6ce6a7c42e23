import cv2
import numpy as np
import pytest
import tensorflow as tf

from pipelines import encoding, pictures
from tests.pipelines.tiny_data import encode, smooth_example


def example_of(image, labels=None, size=None, orientation=1):
    """A record written and read again."""
    if labels is None:
        labels = np.zeros(size, "uint8")
    record = encoding.encode_record(
        image, labels, id="a", shard="key", index=3, orientation=orientation
    )
    return encoding.parse_record(tf.constant(record))


def jpeg(size, interval=None, sampling=cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, grey=False, **more):
    """A JPEG with a restart marker every `interval` blocks."""
    pixels = smooth_example(0, size).image
    pixels = pixels[..., 0] if grey else pixels
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    flags += [cv2.IMWRITE_JPEG_RST_INTERVAL, interval or 0]
    flags += [cv2.IMWRITE_JPEG_PROGRESSIVE, int(more.get("progressive", False))]
    return cv2.imencode(".jpg", pixels, flags)[1].tobytes()


def test_what_a_record_says_of_itself():
    example = example_of(encode(np.zeros((4, 5, 3), "uint8")), size=(4, 5))
    assert example["id"] == b"a" and example["shard"] == b"key" and example["index"] == 3
    assert (int(example["height"]), int(example["width"])) == (4, 5)
    np.testing.assert_array_equal(encoding.decode_image(example), np.zeros((4, 5, 3)))


@pytest.mark.parametrize("size", [(128, 256), (129, 257), (50, 600), (300, 40), (1, 1)])
def test_label_windows(size):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 256, size).astype("uint8")
    example = example_of(encode(labels), labels)
    np.testing.assert_array_equal(encoding.decode_labels(example), labels)
    for _ in range(10):
        first = [rng.integers(0, length) for length in size]
        extent = [rng.integers(1, n - f + 1) for n, f in zip(size, first, strict=True)]
        rows, columns = (slice(f, f + e) for f, e in zip(first, extent, strict=True))
        found = encoding.decode_label_window(
            example, tf.constant(first, "int32"), tf.constant(extent, "int32")
        )
        np.testing.assert_array_equal(found, labels[rows, columns])


# Widths of 16 blocks (16 rows a band), of 12 (intervals of 3: 32), of 5 (128), with a rest.
@pytest.mark.parametrize("size, rows", [((150, 256), 16), ((150, 185), 32), ((300, 70), 128)])
def test_windows_of_a_jpeg_in_bands_are_those_of_the_whole(size, rows):
    content = encoding.encode_jpeg(smooth_example(0, size).image, 90)
    height_at, band_rows, bands = encoding.index_jpeg(content)
    assert band_rows == rows
    assert len(bands) == -(-size[0] // rows) + 1
    assert int.from_bytes(content[height_at : height_at + 2], "big") == size[0]
    example = example_of(content, size=size)
    whole = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE").numpy().astype(int)
    rng = np.random.default_rng(0)
    for _ in range(12):
        first = np.array([rng.integers(0, length) for length in size])
        extent = np.array([rng.integers(1, n - f + 1) for n, f in zip(size, first, strict=True)])
        window = tf.constant(first, "int32"), tf.constant(extent, "int32")
        found = encoding.decode_window(example, *window, tf.constant(1)).numpy()
        part = tuple(slice(f, f + e) for f, e in zip(first, extent, strict=True))
        assert found.shape == (*extent, 3)
        # At the edges of a window chroma has no neighbours to be smoothed with.
        difference = np.abs(found - whole[part])
        assert difference[2:-2, 2:-2].max(initial=0) == 0
        assert difference.max() <= 12


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("banded", [True, False])
def test_windows_at_a_fraction_of_the_resolution(ratio, banded):
    size = (176, 256)
    content = encode(smooth_example(0, size).image, ".jpg")
    if banded:
        content = encoding.encode_jpeg(smooth_example(0, size).image, 95)
    example = example_of(content, size=size)
    whole = (
        tf.io.decode_jpeg(content, ratio=ratio, dct_method="INTEGER_ACCURATE").numpy().astype(int)
    )
    first, extent = tf.constant([32, 16]), tf.constant([120, 160])
    found = encoding.decode_window(example, first, extent, tf.constant(ratio)).numpy()
    top, left, rows, columns = (int(x) // ratio for x in (*first, *extent))
    np.testing.assert_allclose(
        found[1:-1, 1:-1], whole[top : top + rows, left : left + columns][1:-1, 1:-1], atol=3
    )


@pytest.mark.parametrize(
    "extent, shape, expected",
    [
        ((100, 100), (100, 100), 1),
        ((100, 100), (51, 20), 1),
        ((100, 100), (50, 50), 2),
        ((101, 407), (25, 100), 4),
        ((400, 400), (10, 10), 8),
    ],
)
def test_ratio_keeps_enough_pixels(extent, shape, expected):
    window = tf.constant(extent), tf.constant(shape)
    assert (
        int(encoding.window_ratio(example_of(jpeg((16, 16)), size=(16, 16)), *window)) == expected
    )
    png = encode(np.zeros((4, 4, 3), "uint8"))
    assert int(encoding.window_ratio(example_of(png, size=(4, 4)), *window)) == 1


@pytest.mark.parametrize(
    "content",
    [
        encode(np.zeros((4, 5, 3), "uint8")),
        jpeg((40, 64)),
        jpeg((40, 64), interval=4, progressive=True),
        jpeg((40, 64), interval=4)[:-2],  # Truncated.
        jpeg((40, 64), interval=4) + b"more",
        b"\xff\xd8\xff",
        b"",
    ],
)
def test_files_that_have_no_bands(content):
    assert encoding.index_jpeg(content) is None


@pytest.mark.parametrize(
    "arguments, rows",
    [
        ({"interval": 1}, 32),  # 4 blocks a row: 8 intervals are two rows of 16 pixels.
        ({"interval": 4}, 128),
        ({"interval": 1, "sampling": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444}, 8),
        ({"interval": 1, "sampling": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422}, 16),
        ({"interval": 2, "grey": True}, 16),
    ],
)
def test_originals_with_restart_markers_are_used(arguments, rows):
    content = jpeg((150, 64), **arguments)
    assert encoding.index_jpeg(content)[1] == rows
    example = example_of(content, size=(150, 64))
    window = tf.constant([70, 10]), tf.constant([60, 40])
    found = encoding.decode_window(example, *window, tf.constant(1)).numpy().astype(int)
    whole = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(found[2:-2, 2:-2], whole[72:128, 12:48])


def test_quality():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype("uint8")
    sizes = [len(encoding.encode_jpeg(image, quality)) for quality in (10, 50, 95)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["bands", "jpeg", "png"])
def test_windows_of_turned_images(kind, orientation):
    size = (144, 192)  # In the file; a multiple of all ratios.
    pixels = smooth_example(0, size).image
    content = {
        "bands": lambda: encoding.encode_jpeg(pixels, 95),
        "jpeg": lambda: encode(pixels, ".jpg"),
        "png": lambda: encode(pixels),
    }[kind]()
    upright = pictures.turn(pictures.read(content).pixels, orientation)
    example = example_of(content, size=upright.shape[:2], orientation=orientation)
    np.testing.assert_array_equal(encoding.decode_image(example), upright)
    first, extent = np.array([16, 40]), np.array([96, 64])
    window = tf.constant(first, "int32"), tf.constant(extent, "int32")
    found = encoding.decode_window(example, *window, tf.constant(1)).numpy().astype(int)
    whole = upright[16:112, 40:104]
    assert found.shape == whole.shape
    np.testing.assert_array_equal(found[2:-2, 2:-2], whole[2:-2, 2:-2])
    ratio = int(encoding.window_ratio(example, window[1], tf.constant([20, 16])))
    assert ratio == (1 if kind == "png" else 4)
    if ratio == 4:
        small = encoding.decode_window(example, *window, tf.constant(4)).numpy()
        means = whole.reshape(24, 4, 16, 4, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(small[1:-1, 1:-1], means[1:-1, 1:-1], atol=6)


def test_a_turned_image_is_reduced_only_where_its_size_is_a_multiple():
    content = encode(smooth_example(0, (90, 64)).image, ".jpg")
    example = example_of(content, size=(64, 90), orientation=6)
    window = tf.constant([48, 48]), tf.constant([6, 6])
    assert int(encoding.window_ratio(example, *window)) == 2  # 90 is no multiple of 4.
