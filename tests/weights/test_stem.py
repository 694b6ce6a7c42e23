import keras
import numpy as np
import pytest

from kseg.pixel_format import PixelFormat
from kseg.segmenters import build_segmenter, pixel_format_of
from kseg.weights import load_weights
from kseg.weights.stem import adapt
from tests import tiny_networks

KERNEL = np.arange(12, dtype="float32").reshape(1, 1, 3, 4)
R, G, B = (KERNEL[:, :, i] for i in range(3))


@pytest.mark.parametrize(
    "channels, how, parts",
    [
        (1, None, [(R + G + B)]),  # The mean, times 3.
        (2, "mean", [(R + G + B) / 2] * 2),
        (4, None, [R * 0.75, G * 0.75, B * 0.75, R * 0.75]),
        (5, "repeat", [part * 0.6 for part in (R, G, B, R, G)]),
        (4, "mean", [(R + G + B) / 4] * 4),
    ],
)
def test_a_stem_by_hand(channels, how, parts):
    adapted, line = adapt(KERNEL, channels, how)
    np.testing.assert_allclose(adapted, np.stack(parts, axis=2), rtol=1e-6)
    assert adapted.dtype == "float32" and f"for {channels} channel" in line


def test_an_image_of_equal_channels_gets_the_same_output():
    image = np.random.default_rng(0).normal(size=(1, 5, 5, 1))
    expected = np.einsum("bhwc,co->bhwo", image.repeat(3, axis=3), KERNEL[0, 0])
    for channels in (1, 2, 6):
        kernel = adapt(KERNEL, channels, "mean")[0]
        found = np.einsum("bhwc,co->bhwo", image.repeat(channels, axis=3), kernel[0, 0])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_unknown_stem():
    with pytest.raises(ValueError, match="must be one of"):
        adapt(KERNEL, 4, "zero")


def four_channels():
    numbers = dict.fromkeys(("mean", "minimum", "maximum"), (3.0, 4.0, 5.0, 6.0))
    return PixelFormat(4, "uint16", (0, 4095), std=(2.0, 0.0, 4.0, 8.0), **numbers)


def tiny_segmenter(pixels, channels):
    backbone = tiny_networks.tiny_resnet(input_channels=channels)
    return build_segmenter(backbone, "deeplabv3", 2, head_arguments={"aspp_channels": 4},
                           pixel_format=pixels)  # fmt: skip


def test_weights_for_rgb_are_adapted_and_reported(tmp_path):
    file = str(tmp_path / "rgb.weights.h5")
    rgb = tiny_networks.tiny_resnet()
    rgb.save_weights(file)
    network = tiny_segmenter(four_channels(), 4)
    report = load_weights(network, file, backbone_only=True, stem="mean")
    old, new = (
        next(w for w in model.weights if w.path == "conv1/convolution/kernel").numpy()
        for model in (rgb, network)
    )
    np.testing.assert_allclose(new, adapt(old, 4, "mean")[0])
    assert "adapted: conv1/convolution/kernel: the mean of red, green and blue" in str(report)
    assert not load_weights(rgb, file).adapted  # Its own channels are left alone.


def test_a_segmenter_normalizes_by_the_statistics_of_its_format(tmp_path):
    pixels = four_channels()
    network = tiny_segmenter(pixels, 4)
    layer = network.get_layer("image_normalization")
    image = np.array([[[[5, 4, 9, 6]]]], "uint16")
    # (x - mean) / std; the std of a constant channel is 1.
    np.testing.assert_allclose(layer(image), [[[[1.0, 0.0, 1.0, 0.0]]]])
    assert pixel_format_of(network) == pixels
    network.save(tmp_path / "network.keras")
    assert pixel_format_of(keras.models.load_model(tmp_path / "network.keras")) == pixels
    assert pixel_format_of(tiny_segmenter(None, 3)) is None


def test_channels_that_a_backbone_does_not_take():
    with pytest.raises(ValueError, match=r"must take images of 4 channels\. Received one of 3"):
        tiny_segmenter(four_channels(), 3)
    with pytest.raises(ValueError, match="must take `input_channels`, for images"):
        build_segmenter(f"{__name__}:of_three", "deeplabv3", 2, pixel_format=four_channels())


def of_three(synchronized_batch_norm=False):
    return tiny_networks.tiny_resnet()


@pytest.mark.parametrize("name", ["hrnet", "resnet", "swin", "efficientnet_lite"])
def test_every_backbone_takes_other_channels(name):
    from kseg import backbones

    backbone = {
        "hrnet": tiny_networks.tiny_hrnet,
        "resnet": tiny_networks.tiny_resnet,
        "swin": lambda **more: backbones.build_swin(
            embed_dim=4, depths=(1,) * 4, num_heads=(1, 1, 2, 2), window_size=2, **more
        ),
        "efficientnet_lite": lambda **more: backbones.build_efficientnet_lite(
            channels=(8,) * 7, repeats=(1,) * 7, stem_channels=8, top_channels=8, **more
        ),
    }[name](input_channels=5)
    assert backbone.input_shape == (None, None, None, 5)
    assert backbone.compute_output_shape((1, 64, 32, 5))["c2"][1:3] == (16, 8)
