"""One run of a study in a separate process: `python -m kseg.commands.study_run CONFIG FOLDER`.

Trains, scores the last and the best step, measures the features and the cost, and writes
`result.json` and `counts.npz` into the folder.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time

import kseg.quiet  # noqa: F401 - silences TensorFlow in this separate process, too.
from kseg.json_text import parse_json

os.environ.setdefault("KERAS_BACKEND", "tensorflow")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Data and initial weights of an arm of a study.

    Attributes:
        fingerprint: str, hash of the stored images, masks and classes of the splits that the arm
            uses. It does not depend on the machine, the folder, or the times of the files that
            the records were made from.
        class_names: list of str.
        checksums: dict from the config key of the initial weights, if they are in a file, to
            `kseg.weights.files.checksum`.
    """

    fingerprint: str
    class_names: list
    checksums: dict


def inputs_of(config):
    """Describes the data and initial weights of a config.

    Args:
        config: `kseg.config.Experiment`.

    Returns:
        `Inputs`.

    Raises:
        pipelines.DataError: as in `kseg.commands.data.ExperimentData.open`.
        UserError: if the weights have an unknown suffix.
    """
    from kseg.commands.data import ExperimentData
    from kseg.weights.files import initial_checksums
    from pipelines.manifest import hash_of

    data = ExperimentData.open(config)
    checksums = initial_checksums(config.model)
    return Inputs(hash_of(data.identity()), data.manifest.class_names, checksums)


def run(config_file, folder):
    """Trains and scores the run of a config.

    Args:
        config_file: JSON file of an experiment.
        folder: the run's folder; an interrupted run in it is resumed.

    Returns:
        dict, the line of the results file without the names of study, arm and seed.

    Raises:
        kseg.errors.Interrupted: after SIGINT or SIGTERM.
        UserError: if the config or the data is invalid, or a loss is not finite.
    """
    from kseg import config as config_module
    from kseg import files
    from kseg.commands.data import ExperimentData
    from kseg.runs import Run
    from kseg.training import loop

    usage = _Usage(pathlib.Path(folder))
    config = config_module.load(config_file)
    data = ExperimentData.open(config)
    config = data.config
    run = Run.create(folder, config, data.classes, data.identity())
    try:
        trained = loop.train(run, data.training_batches, data.evaluation_batches)
    finally:
        usage.add()
    last, counts = _score(run, "latest", data)
    best, best_step = last, trained["best_step"]
    if best_step != trained["step"]:
        best, _ = _score(run, "best", data)
    line = {
        "backend": "tensorflow",
        **_environment(),
        "steps": config.train.total_steps,
        "batch_size": config.data.batch_size,
        "initial_weights": trained["initial_weights"],
        "last": {"step": trained["step"], **last},
        "best": {"step": best_step, **best},
        "features": _features(run, data),
        "losses": _losses(run),
        **usage.cost(),
    }
    counts.save(run.path / "counts.npz")
    files.write_text(run.path / "result.json", json.dumps(line, indent=1) + "\n")
    return line


def _score(run, checkpoint, data):
    """Scores a checkpoint; returns `(scores, ImageCounts)`."""
    from kseg.evaluation.evaluator import Evaluator
    from kseg.segmenters import inference_model
    from kseg.studies.statistics import scores_of

    evaluator = Evaluator(inference_model(run.segmenter(checkpoint)), len(run.classes))
    counts = evaluator(data.evaluation_batches()).image_counts
    return scores_of(counts), counts


def _features(run, data):
    from kseg.analysis.features import feature_statistics
    from kseg.studies.tables import FEATURES

    segmenter, batches = run.segmenter("latest"), data.evaluation_batches()
    statistics = feature_statistics(segmenter, batches, len(run.classes)).to_dict(run.classes.names)
    return {name: statistics[key] for name, key in FEATURES.items()}


def _losses(run):
    """Computes the means of the loss terms over the last tenth of the logged steps."""
    from kseg.analysis.curves import read_scalars

    means = {}
    for tag, (steps, values) in read_scalars(run.path / "tensorboard" / "train").items():
        if tag.startswith("loss/"):
            late = [v for s, v in zip(steps, values, strict=True) if s > 0.9 * steps[-1]]
            means[tag.removeprefix("loss/")] = sum(late) / len(late)
    return means


def _environment():
    import tensorflow as tf

    from kseg.runs.environment import environment

    values = environment()
    gpus = [tf.config.experimental.get_device_details(d) for d in _gpus(tf)]
    cpu = f"CPU, {os.cpu_count()} cores"
    return {
        "device": ", ".join(gpu.get("device_name", "GPU") for gpu in gpus) or cpu,
        "commit": values["git_commit"],
        "modified": values["git_modified"],
        "environment": {"python": values["python"], **values["packages"]},
    }


def _gpus(tf):
    return tf.config.list_physical_devices("GPU")


class _Usage:
    """Time and memory of a run, over all processes that trained it.

    The cost is unknown if one of them was killed, because it could not record its usage.
    """

    def __init__(self, folder):
        self._file = folder / "usage.json"
        self._start = time.monotonic()
        try:
            self._before = parse_json(self._file.read_text())
        except (OSError, ValueError):
            self._before = {"starts": 0, "ends": 0, "seconds": 0.0, "cpu_seconds": 0.0, "peak": 0}
        self._before["starts"] += 1
        self._write(self._before)

    def add(self):
        """Adds the usage of this process."""
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        unit = 1 if sys.platform == "darwin" else 1024  # Bytes on macOS, KiB elsewhere.
        values = self._before
        values["ends"] += 1
        values["seconds"] += time.monotonic() - self._start
        values["cpu_seconds"] += used.ru_utime + used.ru_stime
        values["peak"] = max(values["peak"], used.ru_maxrss * unit / 1e6)
        self._write(values)

    def cost(self):
        """Returns a dict of `seconds`, `cpu_seconds` and `peak_memory_mb`, None if unknown."""
        values = self._before
        known = values["starts"] == values["ends"]
        return {
            "seconds": values["seconds"] if known else None,
            "cpu_seconds": values["cpu_seconds"] if known else None,
            "peak_memory_mb": values["peak"] if known else None,
        }

    def _write(self, values):

        from kseg import files

        files.write_text(self._file, json.dumps(values) + "\n")


def attempt(config_file, folder):
    """Calls `run`; returns the one-line message of a user error, or None.

    Raises:
        kseg.errors.Interrupted: after SIGINT or SIGTERM.
    """
    from kseg.commands.console import file_problem
    from kseg.errors import Interrupted, UserError

    try:
        run(config_file, folder)
    except UserError as error:
        return str(error)
    except Interrupted:
        raise
    except Exception as error:
        problem = file_problem(error)
        if problem is None:
            raise
        return problem
    return None


def main(arguments):
    """Calls `run`; reports a user error as one line on stderr, with exit code 2."""
    from kseg.commands import console
    from kseg.errors import Interrupted, name_options

    name_options(console.flag)
    try:
        error = attempt(*arguments)
    except Interrupted as stop:
        print(stop, flush=True)
        return 130
    if error is not None:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
