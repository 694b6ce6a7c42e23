import keras
import numpy as np
import pytest

from kseg.backbones import BACKBONES, Backbone, build_backbone


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"name='hrnet'.*'hrnet_w18'.*'hrnet_w48'"):
        build_backbone("hrnet")


def test_unknown_argument():
    with pytest.raises(TypeError, match="depth"):
        build_backbone("hrnet_w18", depth=3)


def test_every_weight_has_its_own_path():
    assert set(BACKBONES) >= {"hrnet_w18", "hrnet_w18_small", "hrnet_w32", "hrnet_w48"}
    backbone = build_backbone("hrnet_w18_small")
    paths = [weight.path for weight in backbone.weights]
    assert len(set(paths)) == len(paths)


def test_saved_backbone_knows_its_strides(tmp_path):
    backbone = build_backbone("hrnet_w18_small")
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    assert isinstance(loaded, Backbone)
    assert loaded.strides == backbone.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    image = np.random.default_rng(0).normal(size=(1, 32, 64, 3)).astype("float32")
    expected = backbone(image)
    for name, feature in loaded(image).items():
        np.testing.assert_allclose(feature, expected[name], rtol=1e-5, atol=1e-5)
