"""What a run tells while it goes: a progress line and TensorBoard events."""

import contextlib
import shutil
import sys
import time

import tensorflow as tf

from kseg import visualize


class Progress:
    """A line with loss terms, learning rate, speed and the time left.

    On a terminal the line is overwritten; in a file each report is a line of its own.

    Args:
        step: int, where the run starts.
        steps: int, where it ends.
        batch_size: int, images in a step.
        quiet: bool, prints nothing.
    """

    def __init__(self, step, steps, batch_size, *, quiet=False):
        self._steps = steps
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._window = None  # The first step compiles: it does not count as speed.
        self._window_steps = 0
        self._steps_done = 0
        self._terminal = sys.stdout.isatty()
        self._quiet = quiet

    @property
    def is_first(self):
        """Whether just one step is done."""
        return self._steps_done == 1

    def step_done(self):
        """Counts a step."""
        self._steps_done += 1
        if self._window is None:
            self._window = time.perf_counter()
        else:
            self._window_steps += 1

    def report(self, step, values):
        """Prints the line.

        Args:
            step: int.
            values: dict of floats, with `loss`, the terms, `learning_rate`.

        Returns:
            dict with `images_per_second` since the last report, empty after the first step.
        """
        parts = {"step": f"step {step}/{self._steps}", "loss": f"loss {values['loss']:.4f}"}
        terms = {k: v for k, v in values.items() if k not in ("learning_rate", "loss")}
        # They add up to the loss only with their weights.
        shown = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        parts["terms"] = f"(unweighted: {shown})"
        parts["rate"] = f"rate {values['learning_rate']:.2e}"
        seconds = time.perf_counter() - self._window
        speed = {}
        if self._window_steps:
            per_step = seconds / self._window_steps
            speed["images_per_second"] = self._batch_size / per_step
            left = round(per_step * (self._steps - step))
            parts["speed"] = f"{self._batch_size / per_step:.1f} images/s"
            parts["left"] = f"{_clock(left)} left"
        else:
            parts["left"] = f"first step after {time.perf_counter() - self._start:.1f} s"
        self._window, self._window_steps = time.perf_counter(), 0
        if self._quiet:
            return speed
        if self._terminal and step < self._steps:
            # A line that is broken into two cannot be overwritten.
            text = _fitting(parts, shutil.get_terminal_size().columns - 1)
            print(f"\r\x1b[K{text}", end="", flush=True)
        else:
            self.line("  ".join(parts.values()))
        return speed

    def line(self, text):
        """Prints a line that stays."""
        print(f"\r\x1b[K{text}" if self._terminal else text, flush=True)

    @contextlib.contextmanager
    def paused(self):
        """Leaves what happens inside out of the speed."""
        start = time.perf_counter()
        yield
        self._window += time.perf_counter() - start


def _fitting(parts, width):
    """As many parts as fit into a line; what is left out first comes first here."""
    kept = dict(parts)
    for name in ("terms", "rate", "speed", "loss", "step"):
        text = "  ".join(kept.values())
        if len(text) <= width:
            return text
        kept.pop(name, None)
    return "  ".join(kept.values())[: max(width, 0)]


def _clock(seconds):
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


class TensorBoard:
    """Writes a run's events.

    Args:
        folder: `pathlib.Path`.
        classes: `kseg.runs.Classes`.
    """

    def __init__(self, folder, classes):
        self._classes = classes
        self._train = tf.summary.create_file_writer(str(folder / "train"))
        self._evaluation = tf.summary.create_file_writer(str(folder / "evaluation"))

    def scalars(self, step, values):
        """Writes loss terms, learning rate, speed: dict of floats."""
        with self._train.as_default():
            for name, value in values.items():
                tag = name if name in ("learning_rate", "images_per_second") else f"loss/{name}"
                tf.summary.scalar(tag, value, step=step)
        self._train.flush()  # A failed run is looked at, too.

    def evaluation(self, step, evaluation):
        """Writes scores, the confusion matrix and image panels.

        Args:
            step: int.
            evaluation: `kseg.evaluation.inference.Evaluation`.
        """
        classes = self._classes
        more = {"categories": classes.categories, "groups": classes.groups}
        write_evaluation(self._evaluation, step, evaluation, classes, **more)

    def close(self):
        """Flushes and closes the files."""
        self._train.close()
        self._evaluation.close()


def write_evaluation(
    writer, step, evaluation, classes, *, categories=None, groups=None, boundary_iou=None
):
    """Writes scores, the confusion matrix and image panels.

    Args:
        writer: `tf.summary.SummaryWriter`.
        step: int.
        evaluation: `kseg.evaluation.inference.Evaluation`.
        classes: `kseg.runs.Classes`.
        categories, groups, boundary_iou: as for `kseg.evaluation.metrics.Scores.to_dict`.
    """
    scores = evaluation.scores
    values = {
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
    }
    values |= {f"iou/{n}": iou for n, iou in zip(classes.names, scores.iou, strict=True)}
    values |= {f"category_iou/{n}": v for n, v in scores.category_iou(categories or {}).items()}
    values |= {f"group_iou/{n}": v for n, v in scores.group_iou(groups or {}).items()}
    if boundary_iou is not None:
        named = zip(classes.names, boundary_iou, strict=True)
        values |= {f"boundary_iou/{n}": iou for n, iou in named}
    with writer.as_default():
        for tag, value in values.items():
            tf.summary.scalar(tag, value, step=step)
        picture = visualize.confusion_picture(scores.matrix, classes.names)
        tf.summary.image("confusion_matrix", picture[None], step=step)
        for i, example in enumerate(evaluation.examples):
            panel = visualize.panel([example], classes.names, classes.palette)
            tf.summary.image(f"panel/{i}", panel[None], step=step)
    writer.flush()
