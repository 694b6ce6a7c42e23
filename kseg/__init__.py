"""Semantic segmentation with supervised contrastive learning, on Keras 3 and TensorFlow.

Every name below is loaded when it is first used: `import kseg` itself imports neither Keras nor
TensorFlow.
"""

import importlib
import sys

from kseg import registration

__version__ = "0.2.0"

_HOMES = {
    "Contextrast": "kseg.contrast.contextrast",
    "CrossEntropy": "kseg.losses",
    "Dice": "kseg.losses",
    "Evaluator": "kseg.evaluation.evaluator",
    "Focal": "kseg.losses",
    "Lovasz": "kseg.losses",
    "MeanIoU": "kseg.metrics",
    "MultiScaleContrast": "kseg.contrast.multi_scale",
    "OHEM": "kseg.losses",
    "PixelContrast": "kseg.contrast.pixel_contrast",
    "RegionContrast": "kseg.contrast.region_contrast",
    "Run": "kseg.runs",
    "SegmentationTrainer": "kseg.training.trainer",
    "UserError": "kseg.errors",
    "build_backbone": "kseg.backbones",
    "build_segmenter": "kseg.segmenters",
    "cross_entropy": "kseg.losses.cross_entropy",
    "evaluate": "kseg.commands.evaluate",
    "export": "kseg.commands.export",
    "inference_model": "kseg.segmenters",
    "from_preset": "kseg.runs.presets",
    "info_nce": "kseg.contrast.info_nce",
    "load": "kseg.serving.loading",
    "load_config": "kseg.config",
    "load_weights": "kseg.weights",
    "lovasz_softmax": "kseg.losses.lovasz",
    "ohem_cross_entropy": "kseg.losses.ohem",
    "predict": "kseg.commands.predict",
    "prepare": "kseg.commands.prepare",
    "push": "kseg.commands.push",
    "train": "kseg.commands.train",
}

__all__ = [
    "OHEM",
    "Contextrast",
    "CrossEntropy",
    "Dice",
    "Evaluator",
    "Focal",
    "Lovasz",
    "MeanIoU",
    "MultiScaleContrast",
    "PixelContrast",
    "RegionContrast",
    "Run",
    "SegmentationTrainer",
    "UserError",
    "build_backbone",
    "build_segmenter",
    "cross_entropy",
    "evaluate",
    "export",
    "from_preset",
    "inference_model",
    "info_nce",
    "load",
    "load_config",
    "load_weights",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "predict",
    "prepare",
    "push",
    "train",
]


def __getattr__(name):
    if name in ("losses", "metrics"):  # `kseg.losses.CrossEntropy()` without another import.
        return importlib.import_module(f"kseg.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    if "keras" in sys.modules:
        registration.register()
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


registration.follow_keras()
