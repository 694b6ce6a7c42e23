"""Networks for serving: SavedModels, and single files for LiteRT and ONNX."""

from kseg.export.saved_model import ServedModel, export, load

__all__ = ["ServedModel", "export", "load"]
