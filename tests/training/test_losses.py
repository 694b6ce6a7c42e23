import keras
import numpy as np
import pytest

from kseg.config import schema
from kseg.errors import UserError
from kseg.losses.affinity import affinity_loss
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.dice import dice_loss
from kseg.losses.focal import focal_loss
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.reduction import global_ratio
from kseg.losses.rmi import rmi_loss
from kseg.training.build import build_losses, default_losses


def segmenter(auxiliary=True):
    image = keras.Input((None, None, 3))
    outputs = {"logits": keras.layers.Conv2D(3, 1)(image)}
    if auxiliary:
        outputs["aux_logits"] = keras.layers.Conv2D(3, 1)(image)
    return keras.Model(image, outputs)


def example():
    rng = np.random.default_rng(0)
    outputs = {
        name: rng.normal(size=(2, 4, 6, 3)).astype("float32") for name in ("logits", "aux_logits")
    }
    return rng.integers(0, 3, (2, 8, 12)), outputs


def test_each_loss_has_its_settings_and_weight():
    settings = schema.Losses.model_validate(
        {
            "cross_entropy": {"class_weights": [1, 2, 0.5], "label_smoothing": 0.1},
            "ohem": {"weight": 0.5, "threshold": 0.2, "min_kept": 9, "class_weights": [1, 2, 3]},
            "lovasz": {"weight": 2, "class_weights": [1, 0.5, 2]},
            "dice": {"weight": 0.25, "smooth": 1, "squared": True, "class_weights": [3, 1, 1]},
            "focal": {"weight": 0.75, "gamma": 1.5, "class_weights": [2, 1, 1]},
            "rmi": {"weight": 0.1, "region_size": 2, "downsampling": 2, "pixel_weight": 0.25},
            "affinity": {"weight": 0.2, "distances": [1], "margin": 2, "temperature": 1},
            "auxiliary": {"weight": 0.3},
        }
    )
    losses = build_losses(settings, segmenter(), num_classes=3)
    labels, outputs = example()
    soft = {"class_weights": [1, 2, 0.5], "label_smoothing": 0.1}
    hard = ohem_cross_entropy(
        labels, outputs["logits"], threshold=0.2, min_kept=9, class_weights=[1, 2, 3]
    )
    overlap = {"smooth": 1, "squared": True, "class_weights": [3, 1, 1]}
    focus = focal_loss(labels, outputs["logits"], gamma=1.5, class_weights=[2, 1, 1])
    regions = {"region_size": 2, "downsampling": 2, "pixel_weight": 0.25}
    pairs = {"distances": [1], "margin": 2, "temperature": 1}
    expected = {
        "cross_entropy": (global_ratio(*cross_entropy(labels, outputs["logits"], **soft)), 1.0),
        "ohem": (global_ratio(*hard), 0.5),
        "lovasz": (lovasz_softmax(labels, outputs["logits"], class_weights=[1, 0.5, 2]), 2.0),
        "dice": (dice_loss(labels, outputs["logits"], **overlap), 0.25),
        "focal": (global_ratio(*focus), 0.75),
        "rmi": (rmi_loss(labels, outputs["logits"], **regions), 0.1),
        "affinity": (affinity_loss(labels, outputs["logits"], **pairs), 0.2),
        "auxiliary": (global_ratio(*cross_entropy(labels, outputs["aux_logits"], **soft)), 0.3),
    }
    assert set(losses) == set(expected)
    for name, (loss, weight) in losses.items():
        np.testing.assert_allclose(loss(labels, outputs), expected[name][0], rtol=1e-6)
        assert weight == expected[name][1]


def test_defaults_are_those_of_the_config():
    labels, outputs = example()
    model = segmenter()
    built = build_losses(schema.Losses(), model, num_classes=3)
    default = default_losses(model)
    assert {name: weight for name, (_, weight) in built.items()} == {
        "cross_entropy": 1.0,
        "auxiliary": 0.4,
    }
    for name, (loss, weight) in default.items():
        assert weight == built[name][1]
        np.testing.assert_array_equal(loss(labels, outputs), built[name][0](labels, outputs))


def test_no_auxiliary_logits_no_auxiliary_loss():
    assert list(default_losses(segmenter(auxiliary=False))) == ["cross_entropy"]
    built = build_losses(schema.Losses(), segmenter(auxiliary=False), num_classes=3)
    assert list(built) == ["cross_entropy"]
    built = build_losses(schema.Losses(auxiliary=None), segmenter(), num_classes=3)
    assert list(built) == ["cross_entropy"]


def test_class_weights_must_fit_the_classes():
    settings = schema.Losses(cross_entropy={"class_weights": [1, 2]})
    with pytest.raises(UserError, match=r"each of the 3 classes\. Received: 2"):
        build_losses(settings, segmenter(), num_classes=3)


def test_class_weights_by_name_come_from_the_training_pixels():
    settings = schema.Losses(
        cross_entropy={"class_weights": "median_frequency"}, auxiliary={"weight": 0.3}
    )
    losses = build_losses(settings, segmenter(), num_classes=3, training_pixels=[60, 30, 10])
    labels, outputs = example()
    for name, key in (("cross_entropy", "logits"), ("auxiliary", "aux_logits")):
        expected = cross_entropy(labels, outputs[key], class_weights=[0.5, 1.0, 3.0])
        value = losses[name][0](labels, outputs)
        np.testing.assert_allclose(value, global_ratio(*expected), rtol=1e-6)


@pytest.mark.parametrize("name", ["ohem", "lovasz", "dice", "focal"])
def test_every_loss_takes_class_weights_by_name(name):
    labels, outputs = example()
    values = []
    for weights in ("median_frequency", [0.5, 1.0, 3.0]):
        settings = schema.Losses.model_validate({name: {"class_weights": weights}})
        losses = build_losses(settings, segmenter(), num_classes=3, training_pixels=[60, 30, 10])
        values.append(float(losses[name][0](labels, outputs)))
    plain = build_losses(schema.Losses.model_validate({name: {}}), segmenter(), num_classes=3)
    assert values[0] == pytest.approx(values[1]) != float(plain[name][0](labels, outputs))
    settings = schema.Losses.model_validate({name: {"class_weights": [1, 2]}})
    with pytest.raises(UserError, match=rf"`losses.{name}.class_weights` .* Received: 2"):
        build_losses(settings, segmenter(), num_classes=3)


@pytest.mark.parametrize("pixels", [None, [0, 0, 0]])
def test_class_weights_by_name_need_pixels(pixels):
    settings = schema.Losses(cross_entropy={"class_weights": "log"})
    with pytest.raises(UserError, match=r"Received: 'log' and no such counts\. Give a list of 3"):
        build_losses(settings, segmenter(), num_classes=3, training_pixels=pixels)
