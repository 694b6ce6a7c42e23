"""Networks for serving: SavedModels, and single files for LiteRT and ONNX."""

from kseg.serving.saved_model import ServedModel, export_saved_model, load_saved_model

__all__ = ["ServedModel", "export_saved_model", "load_saved_model"]
