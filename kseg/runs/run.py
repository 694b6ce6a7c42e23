"""The folder of a run: config, identity of the data, training state and results.

runs/<name>/config.json         the resolved config
            classes.json        names and colors of the classes
            data.json           identity of the prepared data
            train.lock          the training process, see `kseg.runs.lock`
            environment.json    versions of packages, git commit, devices
            checkpoints/        step-00001000.npz (all state), best.npz (evaluated weights)
            tensorboard/        events
            tracking/           ids and offline files of loggers in `train.callbacks`
            evaluation/         scores as JSON and CSV, counts of each image as NPZ
            analysis/           pictures, the report
            saved_model/        the best weights, for serving
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import shutil

import pydantic

from kseg import config as config_module
from kseg import files
from kseg.classes import Classes
from kseg.dotted import is_dotted
from kseg.errors import UserError, as_user_error, option
from kseg.json_text import parse_json
from kseg.pixel_format import PixelFormat
from kseg.runs.environment import environment

# Keys that may change when a run is resumed: they do not affect what is learned.
_FREE_KEYS = (
    "data.path",
    "data.eval_batch_size",
    "data.on_error",
    "data.max_errors",
    "data.service",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.panels",
    "train.patience",
    "train.callbacks",
    "train.profile",
    "train.restarts",  # But see `_differences`.
)
_FOLDERS = ("checkpoints", "tensorboard", "tracking", "evaluation", "analysis", "saved_model")
_FILES = ("config.json", "classes.json", "data.json", "environment.json")
PRESET_WEIGHTS = "model.weights.h5"  # The only weights of a preset, see `kseg.runs.presets`.


class Run:
    """A run's folder. Use `Run.create` or `Run.open`.

    Attributes:
        path: `pathlib.Path`.
        config: `kseg.config.Experiment`.
        classes: `Classes`.
        data: dict that identifies the data, see `kseg.commands.data.ExperimentData.identity`; None
            if unknown.

    Example:
        >>> import kseg
        >>> kseg.Run.open("runs/none")
        Traceback (most recent call last):
        kseg.errors.UserError: ...
    """

    def __init__(self, path, config, classes, data=None):
        self.path = pathlib.Path(path)
        self.config = config
        self.classes = classes
        self.data = data

    @property
    def value_range(self):
        """Value range `(low, high)` of images deeper than 8 bits; None for 8-bit images."""
        value_range = (self.data or {}).get("value_range")
        return tuple(value_range) if value_range else None

    @property
    def pixel_format(self):
        """`kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB."""
        return PixelFormat.from_dict((self.data or {}).get("pixels"))

    @classmethod
    def open(cls, path):
        """Opens an existing run.

        Raises:
            UserError: if there is no run, or one of its files is damaged.
        """
        path = pathlib.Path(path)
        if not (path / "config.json").exists() or not (path / "classes.json").exists():
            raise UserError(
                f"{path} is not a run: it has no config.json and classes.json. "
                "Give the folder that `kseg train` wrote, such as runs/quickstart"
            )
        classes = _read_json(path / "classes.json")
        try:
            classes = _CLASSES.validate_python(classes)
            if len(classes.names) != len(classes.palette) or not classes.names:
                raise ValueError(f"{len(classes.names)} names, {len(classes.palette)} colors")
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path / 'classes.json'} must hold names and colors of the classes, as "
                f"`kseg train` wrote them: {reason}. Train again, with {option('restart', True)}"
            ) from None
        values = _read_json(path / "config.json")
        config = config_module.parse(values, source=str(path / "config.json"))
        data = _read_json(path / "data.json") if (path / "data.json").exists() else None
        return cls(path, config, classes, data)

    @classmethod
    def create(cls, path, config, classes, data=None):
        """Creates the folder of a run, or reopens the folder of the same experiment.

        A folder without checkpoints and results, as left by a failed start, may be reused by any
        experiment.

        Args:
            path: folder.
            config: `kseg.config.Experiment`.
            classes: `Classes`.
            data: dict that identifies the data, or None.

        Raises:
            UserError: if the folder holds a run of another config, or on other data, or a preset.
        """
        run = cls(path, config, classes, data)
        _refuse_preset(run.path)
        if not run._holds_work():
            cls.delete(path)
        elif (run.path / "config.json").exists():
            run._check_same(cls.open(path))
        run.path.mkdir(parents=True, exist_ok=True)
        files.write_text(run.path / "classes.json", json.dumps(dataclasses.asdict(classes)) + "\n")
        if data is not None:
            files.write_text(run.path / "data.json", json.dumps(data) + "\n")
        files.write_text(run.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        files.write_text(run.path / "config.json", config.to_json())
        return run

    @staticmethod
    def delete(path):
        """Deletes a run's files from its folder, and nothing else; the folder may be missing.

        Raises:
            UserError: if the folder holds a preset.
        """
        path = pathlib.Path(path)
        _refuse_preset(path)
        for name in _FOLDERS:
            shutil.rmtree(path / name, ignore_errors=True)
        for name in _FILES:
            (path / name).unlink(missing_ok=True)
        Run.clean(path)

    @staticmethod
    def clean(path):
        """Deletes unfinished files of killed processes.

        Args:
            path: folder of a run to which no process writes, see `kseg.runs.lock`; may be missing.
        """
        path = pathlib.Path(path)
        for folder in (path, *(path / name for name in _FOLDERS)):
            files.clean(folder)
        for folder in (path, *(path / name for name in ("checkpoints", "evaluation", "analysis"))):
            # File names of earlier versions, in folders that kseg alone writes to.
            for name in os.listdir(folder) if folder.is_dir() else []:
                if re.fullmatch(r"\.(?!kseg-).+\.tmp", name):
                    old = folder / name
                    shutil.rmtree(old) if old.is_dir() else old.unlink()

    def read_environment(self):
        """Reads the environment in which the run was created, a dict; see `kseg.runs.environment`.

        Raises:
            OSError: if the file cannot be read.
            UserError: if the file is damaged.
        """
        return _read_json(self.path / "environment.json")

    def identity(self):
        """Returns the config and data stored in checkpoints of the run, as a JSON-able dict."""
        return {"config": self.config.model_dump(mode="json"), "data": self.data}

    def agreement(self):
        """Returns the values that all workers must share, as a flat JSON-able dict."""
        config = config_module.flatten(
            {"config": self.config.model_dump(mode="json"), "data": self.data}
        )
        local = ("config.data.path", "config.data.cache", "config.data.service")
        shared = {
            key.removeprefix("config."): value
            for key, value in config.items()
            if key not in local and not key.startswith("config.data.on_error")
        }
        return {
            **shared,
            "checkpoints in the run's folder": self.checkpoint_steps(),
            "Keras": importlib.metadata.version("keras"),
            "TensorFlow": importlib.metadata.version("tensorflow"),
        }

    def check_checkpoint(self, path, meta):
        """Rejects a checkpoint of another experiment, for example after two runs wrote to a folder.

        Args:
            path: of the checkpoint, for the message.
            meta: dict, its metadata.

        Raises:
            UserError: if it was written with another config or other data, or is not a checkpoint
                of a run.
        """
        if type(meta.get("step")) is not int:
            raise UserError(f"{path} is not a checkpoint of a run: it does not store its step")
        if "config" not in meta:  # Written by an earlier version.
            return
        before = config_module.parse(meta["config"], source=str(path))
        changed = _differences(before, self.config) + _data_differences(meta["data"], self.data)
        if changed:
            raise UserError(
                f"A run's checkpoints must be of its own config and data. {path} is of others: "
                f"{'; '.join(changed)}. Delete it, or use {option('restart', True)} to start over"
            )

    def _check_same(self, before):
        """Refuses to resume a run with another config, classes or data."""
        changed = _differences(before.config, self.config)
        if len(changed) == 1 and changed[0].startswith("train.restarts "):
            had = json.dumps(before.config.train.restarts).replace(" ", "")
            raise UserError(
                f"A run's restarts can be appended to, not changed: {changed[0]} in {self.path}. "
                f"Use {option('overrides', [f'train.restarts={had}'])}, with more numbers at its "
                f"end to train on, or {option('restart', True)} to delete the run and start over"
            )
        of_data = _data_differences(before.data, self.data)
        of_data = of_data or _class_differences(before.classes, self.classes)
        if len(changed) == 1 and changed[0].startswith("train.steps ") and not of_data:
            raise UserError(
                f"The number of steps is part of a run, as its schedule is: {changed[0]} in "
                f"{self.path}. To train it for more steps, leave `train.steps` and use "
                f"{option('overrides', [f'train.restarts={self._restarts_from(before)}'])}; or "
                f"start a new run from its weights: {option('run', f'{self.path}_more')} "
                f"{self._from_best_weights()}; or use {option('restart', True)} to delete it and "
                "start over"
            )
        if changed:
            raise UserError(
                f"{self.path} holds a run of another config: {'; '.join(changed + of_data)}. Use "
                f"{option('restart', True)} to delete it and start over, or {option('run')} for "
                "another folder"
            )
        if of_data:
            raise UserError(
                f"{self.path} was trained on other data: {'; '.join(of_data)}. Use "
                f"{option('restart', True)} to delete it and start over, or {option('run')} for "
                f"another folder (with {self._from_best_weights()} it starts from these weights)"
            )

    def _restarts_from(self, before):
        """Formats the `train.restarts` that would reach this run's last step."""
        more = self.config.train.total_steps - before.config.train.total_steps
        return json.dumps([*before.config.train.restarts, max(more, 1)]).replace(" ", "")

    def _holds_work(self):
        """Returns True if the folder holds anything that took time to compute."""
        if self.checkpoint_steps() or (self.path / "checkpoints/best.npz").exists():
            return True
        folders = [self.path / name for name in ("evaluation", "analysis", "saved_model")]
        return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)

    def _from_best_weights(self):
        """Formats the option that starts another run from the best weights."""
        best = self.path / "checkpoints/best.npz"
        steps = self.checkpoint_steps()
        file = best if best.exists() or not steps else best.with_name(step_file(steps[-1]))
        return option("overrides", [f"model.weights={file}"])

    def checkpoint_steps(self):
        """Returns the steps of the complete checkpoints, ascending."""
        folder = self.path / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        matches = [re.fullmatch(r"step-(\d+)\.npz", name) for name in names]
        steps = {int(match[1]) for match in matches if match}
        # Files with other names are not checkpoints.
        return sorted(step for step in steps if step_file(step) in names)

    def checkpoint(self, which):
        """Returns the path of a checkpoint.

        Args:
            which: `"best"` (by mean IoU; the latest if nothing was evaluated yet), `"latest"`, or
                a step.

        Returns:
            `pathlib.Path`.

        Raises:
            UserError: if there is no such checkpoint.
        """
        folder, steps = self.path / "checkpoints", self.checkpoint_steps()
        if which == "best" and (folder / "best.npz").exists():
            return folder / "best.npz"
        if which == "best" and (self.path / PRESET_WEIGHTS).exists():
            return self.path / PRESET_WEIGHTS
        if which in ("best", "latest") and steps:
            return folder / step_file(steps[-1])
        if str(which).isdigit() and int(which) in steps:
            return folder / step_file(int(which))
        have = [*(["best"] if (folder / "best.npz").exists() else []), *map(str, steps)]
        raise UserError(
            f"{self.path} has no checkpoint {which!r}. It has: {', '.join(have) or 'none yet'}"
        )

    def checkpoint_meta(self, which):
        """Reads the metadata of a checkpoint, such as `step` and `initial_weights`.

        Args:
            which: as in `checkpoint()`.

        Returns:
            dict; empty for the weights of a preset.

        Raises:
            UserError: if there is no such checkpoint, or it is damaged.
        """
        from kseg.runs import checkpoints

        file = self.checkpoint(which)
        return {} if file.name == PRESET_WEIGHTS else checkpoints.restore(file, {})

    @as_user_error("The network of the config")
    def build_segmenter(
        self, *, projections=(), maps=(), synchronized_batch_norm=False, precision=None
    ):
        """Builds the network of the config, freshly initialized.

        Args:
            projections: stages that get a projector; only training needs them.
            maps: further maps to return, see `kseg.segmenters.build_segmenter`.
            synchronized_batch_norm: bool.
            precision: str, the network's dtype policy, independent of Keras' global one; None:
                that of its training, `train.precision`.

        Returns:
            keras model, see `kseg.segmenters.build_segmenter`.
        """
        from kseg.segmenters import segmenter_from_config

        return segmenter_from_config(
            self.config.model,
            len(self.classes),
            precision=precision or self.config.train.precision,
            projections=projections,
            maps=maps,
            synchronized_batch_norm=synchronized_batch_norm,
            pixel_format=self.pixel_format,
        )

    def segmenter(self, checkpoint="best", *, maps=(), precision=None, allow_code=False):
        """Builds the network with trained weights, without projectors.

        With `train.ema` they are the averaged weights, for any checkpoint.

        Args:
            checkpoint: as in `checkpoint()`.
            maps, precision: as in `build_segmenter()`.
            allow_code: bool, whether the config of a preset may name code outside kseg.

        Returns:
            keras model.

        Raises:
            UserError: if there is no such checkpoint, or it is damaged, belongs to another
                experiment, or holds weights that are NaN or infinite; or if this is a preset whose
                network is code outside kseg, and `allow_code` is False.
        """
        from kseg.runs import checkpoints

        file = self.checkpoint(checkpoint)
        if file.name == PRESET_WEIGHTS and not allow_code:
            _refuse_code(self)
        segmenter = self.build_segmenter(maps=maps, precision=precision)
        if file.name == PRESET_WEIGHTS:
            _load_preset(segmenter, file)
            return segmenter
        variables = checkpoints.model_variables(segmenter)
        if self.config.train.ema and file.name != "best.npz":
            variables = checkpoints.averaged_variables(segmenter)
        checkpoints.restore(file, variables, check=lambda meta: self.check_checkpoint(file, meta))
        return segmenter


def _refuse_code(preset):
    """Rejects a preset, which may come from anyone, whose config names code outside kseg."""
    model = preset.config.model
    for name in (model.backbone.name, model.head.name):
        if is_dotted(name):
            raise UserError(
                f"{preset.path} names code outside kseg, {name!r}, which would be run. If you "
                "trust it, use kseg.from_preset(..., allow_code=True) in Python"
            )


def _refuse_preset(path):
    """Rejects training in the folder of a preset."""
    if (path / PRESET_WEIGHTS).exists():
        raise UserError(
            f"{path} holds a preset, which a training would destroy. Use {option('run')} for "
            f"another folder; {option('overrides', [f'model.weights={path / PRESET_WEIGHTS}'])} "
            "starts from its weights"
        )


def _load_preset(segmenter, file):
    from kseg.runs.finite import check_weights
    from kseg.weights import load_weights

    report = load_weights(segmenter, str(file))
    if report.missing:
        raise UserError(
            f"{file} must hold every weight of the network of config.json. It lacks "
            f"{len(report.missing)}, such as {report.missing[0]!r}. Fetch the folder again"
        )
    check_weights(segmenter, str(file))


_CLASSES = pydantic.TypeAdapter(Classes)


def step_file(step):
    """Returns the name of the checkpoint of a step."""
    return f"step-{step:08d}.npz"


def _read_json(path):
    """Reads a JSON object from a run's folder."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it does not hold a JSON object")
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}). Train again, with "
            f"{option('restart', True)}"
        ) from None
    return values


def _class_differences(before, after):
    """Lists the differences between two tables of classes, ignoring colors."""
    if before.names != after.names:
        return [f"the classes were {_few(before.names)}, are {_few(after.names)}"]
    # Earlier versions did not store all counts.
    counts = [(before.training_images, after.training_images)]
    counts += [(before.training_pixels, after.training_pixels)]
    if any(None not in pair and pair[0] != pair[1] for pair in counts):
        return ["the training images have other labels"]
    return []


def _data_differences(before, after):
    """Lists the differences between two identities of data; empty if one is unknown."""
    if not before or not after:
        return []
    if before.get("dataset") != after["dataset"]:
        return [f"the data set was {before.get('dataset')!r}, is {after['dataset']!r}"]
    if before.get("classes") != after["classes"]:
        return [f"the classes were {_few(before.get('classes'))}, are {_few(after['classes'])}"]
    old, new = (PixelFormat.from_dict(data.get("pixels")) for data in (before, after))
    if (old and (old.channels, old.dtype)) != (new and (new.channels, new.dtype)):
        return [f"the images had {old or '8-bit RGB'}, have {new or '8-bit RGB'}"]
    changes = []
    for name, split in after["splits"].items():
        old = before.get("splits", {}).get(name, {})
        if old.get("images") != split["images"]:
            changes.append(f"split {name!r} had {old.get('images')} images, has {split['images']}")
        elif old.get("pixels") != split["pixels"]:
            counts = zip(
                [*after["classes"], "ignored"], old["pixels"], split["pixels"], strict=True
            )
            changed = next(
                f"{was} pixels of {label!r}, has {now}" for label, was, now in counts if was != now
            )
            changes.append(f"split {name!r} had {changed}")
        elif old.get("content") != split["content"]:
            changes.append(f"split {name!r} has other images or masks than before, though as many")
    return changes


def _few(names, limit=12):
    """Formats a list for a message, shortened to its first items."""
    names = list(names or [])
    return f"{names[:limit]}"[:-1] + (", ...]" if len(names) > limit else "]")


def _differences(before, after):
    """Lists the keys in which two configs of a run differ although they must not."""
    had, has = before.train.restarts, after.train.restarts
    before, after = (config_module.flatten(c.model_dump(mode="json")) for c in (before, after))
    keys = [k for k in sorted({*before, *after}) if not k.startswith(_FREE_KEYS)]
    changed = [
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
    # Further cycles do not affect earlier steps.
    return changed + ([] if has[: len(had)] == had else [f"train.restarts was {had}, is {has}"])
