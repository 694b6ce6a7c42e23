"""Pretrained checkpoints: which array of a published file is which weight here."""

import importlib

# Loaded when they are first used: files are looked at without Keras.
_HOMES = {
    "LoadReport": "kseg.weights.load_report",
    "load_torch_state": "kseg.weights.torch_state",
    "load_weights": "kseg.weights.loading",
}

__all__ = ["LoadReport", "load_torch_state", "load_weights"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
