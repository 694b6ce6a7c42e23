"""The folder of a run: its config, checkpoints, lock and environment."""

from kseg.runs.run import Run, step_file

__all__ = ["Run", "step_file"]
