"""Data: from files to TFRecord shards to batches. Nothing in this package imports Keras."""

import importlib

import kseg.quiet  # noqa: F401 - before TensorFlow is imported, on the workers of a runner too.
from pipelines.errors import DataError

# Loaded on first use: `verify` imports TensorFlow.
_HOMES = {
    "prepare": "pipelines.preparation",
    "prepare_once": "pipelines.preparation",
    "read_manifest": "pipelines.manifest",
    "verify": "pipelines.verification",
}

__all__ = ["DataError", "prepare", "prepare_once", "read_manifest", "verify"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
