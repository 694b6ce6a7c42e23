"""Holds a default of the schema and that of the signature that it reaches equal."""

import inspect
import types

import pytest

from kseg.backbones.efficientnet_lite import build_efficientnet_lite
from kseg.backbones.hrnet import build_hrnet
from kseg.backbones.keras_cv import build_keras_cv
from kseg.backbones.resnet import build_resnet
from kseg.backbones.swin import build_swin
from kseg.config import schema
from kseg.contrast.contextrast import Contextrast
from kseg.contrast.multi_scale import MultiScaleContrast
from kseg.contrast.pixel_contrast import PixelContrast
from kseg.contrast.region_contrast import RegionContrast
from kseg.heads import HEADS
from kseg.layers.photometric import PhotometricDistortion
from kseg.losses.affinity import affinity_loss
from kseg.losses.cross_entropy import cross_entropy
from kseg.losses.dice import dice_loss
from kseg.losses.focal import focal_loss
from kseg.losses.lovasz import lovasz_softmax
from kseg.losses.ohem import ohem_cross_entropy
from kseg.losses.rmi import rmi_loss
from kseg.segmenters import build_segmenter
from kseg.training import optimizers, updates
from kseg.training.build import build_schedule, default_losses
from kseg.training.schedules import CosineSchedule, PolynomialSchedule
from pipelines.loader import evaluation_dataset, training_dataset
from pipelines.mixing import copy_paste, cut_mix

PAIRS = [
    (schema.HRNetBackbone, build_hrnet),
    (schema.ResNetBackbone, build_resnet),
    (schema.SwinBackbone, build_swin),
    (schema.EfficientNetLiteBackbone, build_efficientnet_lite),
    (schema.KerasCVBackbone, build_keras_cv),
    (schema.HRNetHead, HEADS["hrnet"]),
    (schema.OCRHead, HEADS["ocr"]),
    (schema.DeepLabV3Head, HEADS["deeplabv3"]),
    (schema.UPerNetHead, HEADS["upernet"]),
    (schema.Model, build_segmenter),
    (schema.MultiScale, MultiScaleContrast),
    (schema.RegionContrast, RegionContrast),
    (schema.Contextrast, Contextrast),
    (schema.PixelContrast, PixelContrast),
    (schema.CrossEntropy, cross_entropy),
    (schema.OHEM, ohem_cross_entropy),
    (schema.Lovasz, lovasz_softmax),
    (schema.Dice, dice_loss),
    (schema.Focal, focal_loss),
    (schema.RMI, rmi_loss),
    (schema.Affinity, affinity_loss),
    (schema.ColorJitter, PhotometricDistortion),
    (schema.Blur, PhotometricDistortion),
    (schema.SGD, optimizers.SGD),
    (schema.AdamW, optimizers.AdamW),
    (schema.SGD, updates.SGD),
    (schema.AdamW, updates.AdamW),
    (schema.Poly, PolynomialSchedule),
    (schema.Linear, PolynomialSchedule),
    (schema.Cosine, CosineSchedule),
    (schema.CutMix, cut_mix),
    (schema.CopyPaste, copy_paste),
    (schema.Data, training_dataset),
    (schema.Data, evaluation_dataset),
]
RENAMED = {
    (schema.SGD, "weight_decay"): "decay_rate",
    (schema.AdamW, "weight_decay"): "decay_rate",
    (schema.Blur, "probability"): "blur_probability",
    (schema.Blur, "sigma"): "blur_sigma",
}
OFF = "The layer alone distorts nothing unless told to; training distorts unless told not to."
KERAS = "The class alone follows Keras; the config gives the papers' setting for segmentation."
DIFFERENT = {
    (schema.KerasCVBackbone, "arguments"): "None in Python, where a dict would be shared.",
    (schema.ColorJitter, "brightness"): OFF,
    (schema.ColorJitter, "contrast"): OFF,
    (schema.ColorJitter, "saturation"): OFF,
    (schema.ColorJitter, "hue"): OFF,
    (schema.Blur, "probability"): OFF,
    (schema.SGD, "weight_decay"): KERAS,
    (schema.AdamW, "weight_decay"): KERAS,
    (schema.AdamW, "learning_rate"): KERAS,
}
# Keys that no signature takes, besides those of the sections' base classes.
TAKEN_ELSEWHERE = {
    (schema.Model, "weights"): "Loaded once the network is built.",
    (schema.Model, "freeze"): "Applied to the network that is built for training.",
    (schema.RegionContrast, "layout"): "Decides the sizes that are passed as `capacity`.",
}
# The weight of a loss is passed to the trainer beside the loss.
BASES = (schema.Backbone, schema.RareClasses, schema.Loss, schema.Objective, schema.Optimizer)


def defaults(section):
    """{key: default} of the keys that have one."""
    fields = section.model_fields.items()
    return {key: field.default for key, field in fields if not field.is_required()}


def plain(value):
    """A value with its lists as tuples: JSON has only lists."""
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    "section, function", PAIRS, ids=[f"{s.__name__}-{f.__module__}" for s, f in PAIRS]
)
def test_a_default_is_the_same_in_both_places(section, function):
    parameters = inspect.signature(function).parameters
    for key, default in defaults(section).items():
        parameter = parameters.get(RENAMED.get((section, key), key))
        if parameter is None or parameter.default is parameter.empty:
            continue
        same = plain(default) == plain(parameter.default)
        assert same != ((section, key) in DIFFERENT), (key, default, parameter.default)


@pytest.mark.parametrize(
    "section",
    dict.fromkeys(s for s, _ in PAIRS if s is not schema.Data),
    ids=lambda section: section.__name__,
)
def test_every_default_reaches_a_signature(section):
    functions = [function for s, function in PAIRS if s is section]
    known = {name for function in functions for name in inspect.signature(function).parameters}
    for base in BASES:
        if issubclass(section, base):
            known |= set(base.model_fields)
    keys = {key for key in defaults(section) if (section, key) not in TAKEN_ELSEWHERE}
    assert {RENAMED.get((section, key), key) for key in keys} <= known


def test_the_losses_without_a_config_are_those_of_an_empty_section():
    segmenter = types.SimpleNamespace(output={"logits": None, "aux_logits": None})
    weights = {name: weight for name, (_, weight) in default_losses(segmenter).items()}
    section = schema.Losses()
    others = set(schema.Losses.model_fields) - {"cross_entropy", "auxiliary"}
    assert not any(getattr(section, name) for name in others)
    assert weights == {
        "cross_entropy": section.cross_entropy.weight,
        "auxiliary": section.auxiliary.weight,
    }


def test_linear_decay_is_the_polynomial_of_power_one():
    schedule = build_schedule(schema.Linear(name="linear"), learning_rate=1.0, steps=4)
    assert schedule.power == 1.0
