import keras
import numpy as np
import pytest

from kseg.config.schema import Data
from kseg.layers.photometric import PhotometricDistortion
from kseg.pixel_format import PixelFormat
from kseg.training.build import build_distortion

LUMA = np.array([0.299, 0.587, 0.114])
COLOR = [200.0, 90.0, 30.0]


def distort(color, draws, mean_luma=0.0, **strengths):
    """The expected result for one color, without clipping."""
    layer = PhotometricDistortion(**strengths)
    matrices, offsets = layer.color_maps(np.array([draws], "float32"), np.float32([mean_luma]))
    return np.array(color) @ np.array(matrices)[0] + float(offsets[0])


def test_no_jitter():
    np.testing.assert_allclose(distort(COLOR, [0.1, 0.9, 0.3, 0.8]), COLOR, rtol=1e-5)
    strengths = {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9, "hue": 0.5}
    np.testing.assert_allclose(distort(COLOR, [0.5] * 4, 50.0, **strengths), COLOR, rtol=1e-5)


@pytest.mark.parametrize(
    "index, strengths, expected",
    [
        # A draw of 0.25 and strength 0.4 yield the factor 1 - 0.4 / 2.
        (0, {"brightness": 0.4}, 0.8 * np.array(COLOR)),
        (1, {"contrast": 0.4}, 100 + 0.8 * (np.array(COLOR) - 100)),
        (2, {"saturation": 0.4}, LUMA @ COLOR + 0.8 * (np.array(COLOR) - LUMA @ COLOR)),
    ],
)
def test_one_strength(index, strengths, expected):
    draws = np.full(4, 0.9)
    draws[index] = 0.25
    # The chroma matrices of the standard have three digits.
    np.testing.assert_allclose(distort(COLOR, draws, 100.0, **strengths), expected, rtol=2e-3)


def test_hue_rotates_chroma_and_keeps_luma_and_gray():
    def turn(color, draw):
        return distort(color, [0.5, 0.5, 0.5, draw], hue=0.5)

    np.testing.assert_allclose(turn([80.0] * 3, 0.2), [80.0] * 3, rtol=2e-3)
    turned = turn(COLOR, 0.7)
    np.testing.assert_allclose(LUMA @ turned, LUMA @ COLOR, rtol=2e-3)
    assert np.abs(turned - COLOR).max() > 20
    # A rotation and its inverse.
    np.testing.assert_allclose(turn(turned, 0.3), COLOR, rtol=2e-3)
    # A rotation by half a turn: the complement, luma - (color - luma).
    np.testing.assert_allclose(turn(COLOR, 1.0), 2 * (LUMA @ COLOR) - COLOR, rtol=1e-2, atol=0.5)


def test_contrast_is_about_the_mean_luma_of_each_image():
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 6, 3))
    images[1] /= 2
    draws = np.tile([[0.5, 0.25, 0.5, 0.5, 0, 0]], (2, 1))  # The factor is 1 - 0.8 / 2.
    result = np.array(PhotometricDistortion(contrast=0.8)(images, draws))
    for image, distorted in zip(images, result, strict=True):
        mean = (image @ LUMA).mean()
        np.testing.assert_allclose(distorted, mean + 0.6 * (image - mean), rtol=1e-4)


def test_bytes_in_floats_from_0_to_255_out():
    images = np.array([[[[250, 10, 0]]]], "uint8")
    result = PhotometricDistortion(brightness=0.5)(images, np.array([[0.9, 0, 0, 0, 0, 0]]))
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    np.testing.assert_allclose(result, [[[[255, 14, 0]]]], rtol=1e-5)


@pytest.mark.parametrize("size", [(9, 12), (3, 5)])  # The second is smaller than the kernel.
def test_blur(size):
    """Compares with a loop over pixels in float64; one of two images is blurred."""
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3))
    draws = np.array([[0, 0, 0, 0, 0.2, 0.5], [0, 0, 0, 0, 0.6, 0.5]])
    layer = PhotometricDistortion(blur_probability=0.5, blur_sigma=(0.5, 1.5))
    result = np.array(layer(images, draws))
    np.testing.assert_allclose(result[1], images[1], rtol=1e-6)
    reach = np.arange(-5, 6)  # Three times the largest sigma, rounded up.
    weights = np.exp(-(reach**2) / 2.0)  # Sigma is 1.
    weights /= weights.sum()
    expected = np.zeros_like(images[0])
    for y in range(size[0]):
        for x in range(size[1]):
            rows = np.clip(y + reach, 0, size[0] - 1)
            columns = np.clip(x + reach, 0, size[1] - 1)
            around = images[0][rows][:, columns]
            expected[y, x] = np.einsum("i,j,ijc->c", weights, weights, around)
    np.testing.assert_allclose(result[0], expected, rtol=1e-4)


def test_what_an_image_gets_does_not_depend_on_its_batch():
    rng = np.random.default_rng(0)
    images, draws = rng.uniform(0, 255, (3, 6, 8, 3)), rng.random((3, 6))
    layer = PhotometricDistortion(
        brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, blur_probability=0.5
    )
    whole = np.array(layer(images, draws))
    for i in range(3):
        alone = layer(images[i : i + 1], draws[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-4, atol=1e-3)


def test_config_round_trip():
    layer = PhotometricDistortion(brightness=0.2, hue=0.1, blur_sigma=(0.3, 0.9))
    again = PhotometricDistortion.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("sigma", [(0.0, 1.0), (2.0, 1.0)])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match="blur_sigma"):
        PhotometricDistortion(blur_sigma=sigma)


def test_built_from_a_config():
    data = {"dataset": "none", "crop_size": (8, 8), "batch_size": 1}
    plain = build_distortion(Data(**data))
    assert (plain.hue, plain.blur_probability) == (0.05, 0.0)
    assert build_distortion(Data(**data, color_jitter=None)) is None
    blurring = build_distortion(Data(**data, color_jitter=None, blur={"probability": 0.3}))
    assert (blurring.strengths, blurring.blur_probability) == ((0.0, 0.0, 0.0), 0.3)


def a_format(channels, dtype, value_range):
    numbers = dict.fromkeys(("mean", "std", "minimum", "maximum"), (1.0,) * channels)
    return PixelFormat(channels, dtype, value_range, **numbers)


def test_other_channels_change_in_brightness_and_contrast_within_their_range():
    images = np.random.default_rng(0).uniform(100, 1100, (2, 4, 5, 4)).astype("float32")
    layer = PhotometricDistortion(brightness=0.4, contrast=0.4, value_range=(100, 1100))
    draws = np.full((2, 6), 0.25, "float32")  # Both factors are 0.8.
    expected = np.empty_like(images)
    for image, result in zip(images, expected, strict=True):
        above = 0.8 * (image - 100)
        mean = above.mean()
        result[...] = np.clip(mean + 0.8 * (above - mean), 0, 1000) + 100
    np.testing.assert_allclose(layer(images, draws), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="must have 3 channels"):
        PhotometricDistortion(hue=0.1)(images, draws)


@pytest.mark.parametrize(
    "pixels, kept",
    [
        (None, (0.25, 0.25, 0.25)),
        (a_format(3, "uint16", (0, 4095)), (0.25, 0.25, 0.25)),
        (a_format(4, "uint8", (0, 255)), (0.25, 0.25, 0.0)),
        (a_format(3, "float32", (-1, 1)), None),
    ],
)
def test_distortion_suits_the_images(pixels, kept):
    data = Data(dataset="any", crop_size=(8, 8), batch_size=1, color_jitter={}, blur=None)
    distortion = build_distortion(data, pixels)
    assert (distortion and distortion.strengths) == kept
    if pixels and distortion:
        assert distortion.value_range == pixels.value_range
