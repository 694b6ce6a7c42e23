"""Pretrained checkpoints: which array of a published file is which weight here."""

from kseg.weights.torch_state import LoadReport, load_torch_state

__all__ = ["LoadReport", "load_torch_state"]
