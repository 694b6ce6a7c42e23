"""Losses on logits: functions of (labels, logits), and Keras loss classes that wrap them."""

from kseg.losses.compiled import CrossEntropy, LovaszSoftmax, OHEMCrossEntropy

__all__ = ["CrossEntropy", "LovaszSoftmax", "OHEMCrossEntropy"]
