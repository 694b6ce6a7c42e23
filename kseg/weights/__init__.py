"""Pretrained checkpoints: which array of a published file is which weight here."""

from kseg.weights.loading import load_weights
from kseg.weights.report import LoadReport
from kseg.weights.torch_state import load_torch_state

__all__ = ["LoadReport", "load_torch_state", "load_weights"]
