"""Training callbacks named in `train.callbacks`, such as loggers for other systems."""

import inspect

from kseg.dotted import load_object
from kseg.errors import UserError


class Callback:
    """Base class of callbacks; override the methods that are needed.

    Callbacks should only observe: a change to the network or the optimizer would not be part of the
    config, and a resumed run would differ. In a cluster only the chief calls them. An exception
    ends the training with a one-line message; the newest checkpoint is kept.
    """

    def on_start(self, run, step):
        """Called before the first step.

        Args:
            run: `kseg.runs.Run`, with `path` and `config`.
            step: int, 0 or that of the checkpoint from which the run resumes.
        """

    def on_log(self, step, values):
        """Called every `train.log_every` steps.

        Args:
            step: int.
            values: dict of floats: `loss`, the terms before their weights, `learning_rate`, and
                `images_per_second` but for the first step.
        """

    def on_evaluation(self, step, evaluation):
        """Called after each evaluation.

        Args:
            step: int.
            evaluation: `kseg.evaluation.evaluator.Evaluation`: its `scores.mean_iou`, `scores.iou`
                and `losses`, for instance.
        """

    def on_checkpoint(self, step, path):
        """Called after each checkpoint.

        Args:
            step: int.
            path: `pathlib.Path` of the file.
        """

    def on_end(self, result):
        """Called at the end, even if nothing was left to train, but not after a stop by a signal.

        Args:
            result: dict as from `kseg.training.loop.train`.
        """


class Callbacks:
    """Calls the callbacks of a run in their order.

    Args:
        callbacks: list of `(name, callback)`: the dotted name for messages, and a `Callback`.
    """

    def __init__(self, callbacks=()):
        self._callbacks = list(callbacks)

    def __getattr__(self, hook):
        if not hook.startswith("on_"):
            raise AttributeError(hook)

        def call(*arguments):
            for name, callback in self._callbacks:
                try:
                    getattr(callback, hook)(*arguments)
                except Exception as error:  # A user's code may raise anything.
                    raise UserError(
                        f"The callback {name!r} failed in {hook}: {_reason(error)}. Fix it, or "
                        "leave it out of `train.callbacks`: the same command resumes from the "
                        "newest checkpoint"
                    ) from error

        return call


def build_callbacks(config):
    """Builds the callbacks named in a config; needs neither Keras nor TensorFlow.

    Args:
        config: `kseg.config.Experiment`.

    Returns:
        `Callbacks`.

    Raises:
        UserError: if a name cannot be imported, does not take its arguments, or does not make a
            `Callback`.
    """
    callbacks = []
    for entry in config.train.callbacks:
        build = load_object(entry.name)
        try:
            if inspect.isclass(build) and not issubclass(build, Callback):
                raise TypeError(f"it must be a kseg.training.callbacks.Callback, is {build}")
            callback = build(**entry.arguments)
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"it must make a kseg.training.callbacks.Callback, makes {type(callback)}"
                )
        except Exception as error:  # A user's code may raise anything.
            raise UserError(
                f"The entry {entry.name!r} of `train.callbacks`: {_reason(error)}"
            ) from error
        callbacks.append((entry.name, callback))
    return Callbacks(callbacks)


def _reason(error):
    """Formats an exception in one line; a `UserError` speaks for itself."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())[:500]
