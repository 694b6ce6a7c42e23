"""Loading of published checkpoints: reading files, and mapping their arrays to kseg's weights."""

import importlib

# Imported on first use, so that files can be inspected without importing Keras.
_MODULES = {
    "LoadReport": "kseg.weights.load_report",
    "load_torch_state": "kseg.weights.torch_state",
    "load_weights": "kseg.weights.loading",
}

__all__ = ["LoadReport", "load_torch_state", "load_weights"]


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
