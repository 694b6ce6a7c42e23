"""Progress of a run in training: a line on the console and TensorBoard events.

The line shows each loss term times its weight, so that the terms add up to the loss. TensorBoard
shows unweighted terms (`loss/<term>`), which stay comparable when a weight ramps up or differs
between runs, and the weighted sum (`loss/loss`).
"""

import contextlib
import shutil
import sys
import time

import tensorflow as tf

from kseg.evaluation import drawing
from kseg.progress import Progress, clock

_LONGEST = 100  # Columns of a line, on wide terminals too.
_SHORT = {
    "cross_entropy": "ce",
    "auxiliary": "aux",
    "contextrast": "ctx",
    "multi_scale": "ms",
    "pixel_contrast": "pix",
    "region_contrast": "reg",
    "same_scale": "same",
    "cross_scale": "cross",
    "pixel_anchor": "pixel",
}


class TrainingProgress:
    """A line with the loss and its terms, the learning rate, the speed and the time left.

    On a terminal the line is overwritten; in a file each report is a separate line.

    Args:
        steps: int, the last step.
        batch_size: int, images per step.
        quiet: bool, print nothing.
    """

    def __init__(self, steps, batch_size, *, quiet=False):
        self._steps = steps
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._window = None  # The first step compiles and is excluded from the speed.
        self._window_steps = 0
        self._steps_done = 0
        self._terminal = sys.stdout.isatty()
        self._quiet = quiet

    @property
    def is_new(self):
        """True if no step has been taken."""
        return self._steps_done == 0

    @property
    def is_first(self):
        """True if exactly one step has been taken."""
        return self._steps_done == 1

    def step_done(self):
        """Counts a step."""
        self._steps_done += 1
        if self._window is None:
            self._window = time.perf_counter()
        else:
            self._window_steps += 1

    def report(self, step, values, weights):
        """Prints the line.

        Args:
            step: int.
            values: dict of floats, with `loss`, the terms before their weights, `learning_rate`.
            weights: dict from the name of a loss or an objective to the weight of its terms.

        Returns:
            dict with `images_per_second` since the last report, empty after the first step.
        """
        parts = {
            "step": f"step {step}/{self._steps}",
            "loss": f"loss {values['loss']:.4f}",
            "rate": f"lr {values['learning_rate']:.1e}",
            "speed": "",
        }
        seconds = time.perf_counter() - self._window
        speed = {}
        if self._window_steps:
            per_step = seconds / self._window_steps
            speed["images_per_second"] = self._batch_size / per_step
            parts["speed"] = f"{self._batch_size / per_step:.1f} img/s"
            parts["left"] = f"{clock(per_step * (self._steps - step))} left"
        else:
            parts["left"] = f"first step after {time.perf_counter() - self._start:.1f} s"
        self._window, self._window_steps = time.perf_counter(), 0
        if self._quiet:
            return speed
        overwritten = self._terminal and step < self._steps
        # A wrapped line cannot be overwritten.
        width = shutil.get_terminal_size().columns - 1 if overwritten else _LONGEST
        text = _fitting(parts, weighted_terms(values, weights), min(width, _LONGEST))
        if overwritten:
            print(f"\r\x1b[K{text}", end="", flush=True)
        else:
            self.line(text)
        return speed

    def line(self, text):
        """Prints a line that is not overwritten."""
        print(f"\r\x1b[K{text}" if self._terminal else text, flush=True)

    @contextlib.contextmanager
    def working(self, doing, total=None, *, unit="images"):
        """Shows the progress of work between two steps, whose time is excluded from the speed.

        Args:
            doing, total, unit: as for `kseg.progress.Progress`.

        Yields:
            `kseg.progress.Progress`.
        """
        start = time.perf_counter()
        if self._terminal and not self._quiet:
            print("\r\x1b[K", end="", flush=True)
        with Progress(doing, total, unit=unit, shown=not self._quiet) as shown:
            yield shown
        if self._window is not None:
            self._window += time.perf_counter() - start


def weighted_terms(values, weights):
    """Multiplies the terms of a loss by their weights, so that they add up to the loss.

    Args:
        values, weights: as for `TrainingProgress.report`.

    Returns:
        dict from the name of a term to float.
    """
    terms = {k: v for k, v in values.items() if k not in ("learning_rate", "loss")}
    return {
        name: value * (weights[name] if name in weights else weights[name.split("/")[0]])
        for name, value in terms.items()
    }


def _fitting(parts, terms, width):
    """Chooses the longest form of the line that fits; the remaining time is dropped last.

    Args:
        parts: dict of str: `step`, `loss`, `rate`, `speed` (empty if unknown), `left`.
        terms: dict from the name of a term to its weighted value, float.
        width: int, columns.

    Returns:
        str.
    """
    grouped = {}
    for name, value in terms.items():
        group = name.split("/")[0]
        grouped[group] = grouped.get(group, 0.0) + value
    sums = [_sum(terms), _sum(_shortened(terms)), _sum(grouped), _sum(_shortened(grouped))]
    step, loss, rate, speed, left = (
        parts[name] for name in ("step", "loss", "rate", "speed", "left")
    )
    lines = [[step, loss + terms, rate, speed, left] for terms in sums]
    lines += [[step, loss + terms, speed, left] for terms in sums]
    lines += [[step, loss, rate, speed, left], [step, loss, speed, left], [step, loss, left]]
    lines += [[step, left], [left]]
    lines = ["  ".join(filter(None, line)) for line in lines]
    return next((line for line in lines if len(line) <= width), left[: max(width, 0)])


def validation_line(terms):
    """Formats the part of a line that shows the losses on the evaluation split.

    Args:
        terms: dict from the name of a term to its weighted value, float; may be empty.

    Returns:
        str.
    """
    if not terms:
        return ""
    parts = _sum(_shortened(terms)) if len(terms) > 1 else ""
    return f"  validation loss {sum(terms.values()):.4f}{parts}"


def _sum(terms):
    return " = " + " + ".join(f"{name} {value:.4f}" for name, value in terms.items())


def _shortened(terms):
    """Returns the terms under shortened names."""

    def short(name):
        first, *rest = name.split("/")
        return "/".join([_SHORT.get(first, first), *(_SHORT.get(part, part) for part in rest)])

    return {short(name): value for name, value in terms.items()}


class TensorBoard:
    """Writes a run's events.

    Args:
        folder: `pathlib.Path`.
        classes: `kseg.classes.Classes`.
    """

    def __init__(self, folder, classes):
        self._classes = classes
        self._train = tf.summary.create_file_writer(str(folder / "train"))
        self._evaluation = tf.summary.create_file_writer(str(folder / "evaluation"))

    def scalars(self, step, values):
        """Writes unweighted loss terms, the loss, learning rate and speed.

        Args:
            step: int.
            values: dict of floats; `learning_rate` and `images_per_second` keep their names as
                tags, others become `loss/<name>`.
        """
        with self._train.as_default():
            for name, value in values.items():
                tag = name if name in ("learning_rate", "images_per_second") else f"loss/{name}"
                tf.summary.scalar(tag, value, step=step)
        self._train.flush()  # So that the events of a failed run can be inspected.

    def evaluation(self, step, evaluation):
        """Writes scores, losses (as `loss/<name>`), the confusion matrix and image panels.

        Args:
            step: int.
            evaluation: `kseg.evaluation.evaluator.Evaluation`.
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
        evaluation: `kseg.evaluation.evaluator.Evaluation`.
        classes: `kseg.classes.Classes`.
        categories, groups, boundary_iou: as for `kseg.evaluation.metrics.Scores.to_dict`.
    """
    scores = evaluation.scores
    values = {
        "mean_iou": scores.mean_iou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
    }
    values |= {f"loss/{name}": value for name, value in evaluation.losses.items()}
    values |= {f"iou/{n}": iou for n, iou in zip(classes.names, scores.iou, strict=True)}
    values |= {f"category_iou/{n}": v for n, v in scores.category_iou(categories or {}).items()}
    values |= {f"group_iou/{n}": v for n, v in scores.group_iou(groups or {}).items()}
    if boundary_iou is not None:
        named = zip(classes.names, boundary_iou, strict=True)
        values |= {f"boundary_iou/{n}": iou for n, iou in named}
    with writer.as_default():
        for tag, value in values.items():
            tf.summary.scalar(tag, value, step=step)
        picture = drawing.confusion_picture(scores.matrix, classes.names)
        tf.summary.image("confusion_matrix", picture[None], step=step)
        for i, example in enumerate(evaluation.examples):
            panel = drawing.panel([example], classes.names, classes.palette)
            tf.summary.image(f"panel/{i}", panel[None], step=step)
    writer.flush()
