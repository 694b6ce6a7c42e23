"""The data: files to TFRecord shards to batches. There is no Keras in here."""

from pipelines.errors import DataError
from pipelines.records import read_manifest

__all__ = ["DataError", "read_manifest"]
