"""Losses on logits: functions of (labels, logits), and classes of them for Keras' `compile`."""

from kseg.losses.compiled import CrossEntropy, LovaszSoftmax, OHEMCrossEntropy

__all__ = ["CrossEntropy", "LovaszSoftmax", "OHEMCrossEntropy"]
