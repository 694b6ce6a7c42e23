"""The data: files to TFRecord shards to batches. There is no Keras in here."""

from pipelines.errors import DataError
from pipelines.preparation import prepare, prepare_once
from pipelines.records import read_manifest, verify

__all__ = ["DataError", "prepare", "prepare_once", "read_manifest", "verify"]
