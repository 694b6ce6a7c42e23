"""The folder of a run: what was trained, with what, and what came of it.

runs/<name>/config.json         the resolved config
            classes.json        names and colours of the classes
            environment.json    versions of packages, git commit, devices
            checkpoints/        step-00001000.npz (all state), best.npz (weights)
            tensorboard/        events
            evaluation/         scores as JSON and CSV, counts of each image as NPZ
            analysis/           pictures, the report
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import re
import shutil
import subprocess

from kseg import config as config_module
from kseg import files
from kseg.errors import UserError, as_user_error
from kseg.segmenters import build_segmenter
from kseg.training import checkpoints

_PACKAGES = ("keras", "tensorflow", "numpy", "opencv-python-headless", "kseg")

# Keys that may change when a run is resumed: they do not touch what is learned.
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
)


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names and colours of the classes, in the order of their numbers.

    Attributes:
        names: list of str.
        palette: list of `[red, green, blue]`, 0 to 255.
        training_images: list of int, training images in which each class occurs, or None where
            that is not known.
        categories: dict from the name of a category to the numbers of its classes; it is scored as
            if they were one class.
        groups: dict from the name of a group to the numbers of its classes; it is scored by the
            mean over them.
        training_pixels: list of int, training pixels of each class, or None where that is not
            known.
    """

    names: list[str]
    palette: list[list[int]]
    training_images: list[int] | None = None
    categories: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    groups: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    training_pixels: list[int] | None = None

    def __len__(self):
        return len(self.names)


class Run:
    """A run's folder. Use `Run.create` or `Run.open`.

    Attributes:
        path: `pathlib.Path`.
        config: `kseg.config.Experiment`.
        classes: `Classes`.
    """

    def __init__(self, path, config, classes):
        self.path = pathlib.Path(path)
        self.config = config
        self.classes = classes

    @classmethod
    def open(cls, path):
        """Opens an existing run.

        Raises:
            UserError: if there is none.
        """
        path = pathlib.Path(path)
        try:
            config = json.loads((path / "config.json").read_text())
            classes = Classes(**json.loads((path / "classes.json").read_text()))
        except FileNotFoundError:
            raise UserError(
                f"{path} is not a run: it has no config.json and classes.json. "
                "Give the folder that scripts/train.py wrote, such as runs/quickstart"
            ) from None
        config = config_module.parse(config, source=str(path / "config.json"))
        return cls(path, config, classes)

    @classmethod
    def create(cls, path, config, classes):
        """Makes a run's folder, or finds that of the same experiment again.

        Raises:
            UserError: if the folder holds a run of another config.
        """
        run = cls(path, config, classes)
        if (run.path / "config.json").exists():
            before = cls.open(path)
            changed = _differences(before.config, config)
            known = before.classes
            if known.training_pixels is None:  # Earlier runs did not count them.
                known = dataclasses.replace(known, training_pixels=classes.training_pixels)
            if known != classes:
                changed.append("the classes of the data")
            if changed:
                raise UserError(
                    f"{path} holds a run of another config: {'; '.join(changed)}. Use --restart "
                    "to delete it and start over, or --run for another folder"
                )
        run.path.mkdir(parents=True, exist_ok=True)
        files.write_text(run.path / "classes.json", json.dumps(dataclasses.asdict(classes)) + "\n")
        files.write_text(run.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        files.write_text(run.path / "config.json", config.to_json())
        return run

    @staticmethod
    def delete(path):
        """Deletes what a run left in its folder, and nothing else; the folder may be missing."""
        path = pathlib.Path(path)
        for name in ("checkpoints", "tensorboard", "evaluation", "analysis"):
            shutil.rmtree(path / name, ignore_errors=True)
        for name in ("config.json", "classes.json", "environment.json"):
            (path / name).unlink(missing_ok=True)

    def checkpoint_steps(self):
        """Steps of the complete checkpoints, ascending."""
        found = (self.path / "checkpoints").glob("step-*.npz")
        return sorted(int(re.fullmatch(r"step-(\d+)", file.stem)[1]) for file in found)

    def checkpoint(self, which):
        """The file of a checkpoint.

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
        if which in ("best", "latest") and steps:
            return folder / step_file(steps[-1])
        if str(which).isdigit() and int(which) in steps:
            return folder / step_file(int(which))
        have = [*(["best"] if (folder / "best.npz").exists() else []), *map(str, steps)]
        raise UserError(
            f"{self.path} has no checkpoint {which!r}. It has: {', '.join(have) or 'none yet'}"
        )

    @as_user_error("The network of the config")
    def build_segmenter(self, *, projections=(), maps=(), synchronized_batch_norm=False):
        """Builds the network of the config, freshly initialised.

        Args:
            projections: stages that get a projector; only training needs them.
            maps: further maps to give, see `kseg.segmenters.build_segmenter`.
            synchronized_batch_norm: bool.

        Returns:
            keras model, see `kseg.segmenters.build_segmenter`.
        """
        model = self.config.model
        return build_segmenter(
            model.backbone.name,
            model.head.name,
            len(self.classes),
            backbone_arguments=model.backbone.model_dump(
                exclude={"name", "weights", "weights_if_missing"}
            ),
            head_arguments=model.head.model_dump(exclude={"name"}),
            projections=projections,
            maps=maps,
            embedding_dim=model.embedding_dim,
            projector_layers=model.projector_layers,
            synchronized_batch_norm=synchronized_batch_norm,
        )

    def segmenter(self, checkpoint="best", *, maps=()):
        """Builds the network with trained weights, without projectors.

        Args:
            checkpoint: as in `checkpoint()`.
            maps: as in `build_segmenter()`.

        Returns:
            keras model.
        """
        file = self.checkpoint(checkpoint)
        segmenter = self.build_segmenter(maps=maps)
        checkpoints.restore(file, checkpoints.model_variables(segmenter))
        return segmenter


def step_file(step):
    """Name of the checkpoint of a step."""
    return f"step-{step:08d}.npz"


def environment():
    """What a result depends on besides the config: a JSON-able dict."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments):
    """Output of a git command about this source tree, None where there is no git."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _differences(before, after):
    before, after = (_flatten(c.model_dump(mode="json")) for c in (before, after))
    keys = [k for k in sorted({*before, *after}) if not k.startswith(_FREE_KEYS)]
    return [
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _flatten(value, prefix=""):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return {prefix: value}
    flat = {}
    for key, item in items:
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat
