"""The folder of a run: its config, classes, checkpoints, lock and environment."""

from kseg.runs.classes import Classes
from kseg.runs.run import Run, step_file

__all__ = ["Classes", "Run", "step_file"]
