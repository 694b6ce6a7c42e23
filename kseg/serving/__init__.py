"""Networks for serving: SavedModels, and single files for LiteRT and ONNX."""

import importlib

__all__ = ["ServedModel", "export_saved_model", "load_saved_model"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported on first use, because `kseg.serving.checks` must work without TensorFlow.
    return getattr(importlib.import_module("kseg.serving.saved_model"), name)


def __dir__():
    return sorted({*globals(), *__all__})
