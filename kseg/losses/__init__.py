"""Losses on logits: functions of (labels, logits), and Keras loss classes that wrap them."""

from kseg.losses.compiled import (
    OHEM,
    RMI,
    Affinity,
    CrossEntropy,
    Dice,
    Focal,
    Lovasz,
    OutputLoss,
)

__all__ = [
    "OHEM",
    "RMI",
    "Affinity",
    "CrossEntropy",
    "Dice",
    "Focal",
    "Lovasz",
    "OutputLoss",
]
