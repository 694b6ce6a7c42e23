"""The design of a study: a base config, arms that change it, seeds, and scored classes."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import pydantic
from pydantic import Field

from kseg import config as config_module
from kseg.config import ConfigError, Section

# Keys that affect neither the training nor the scores of a run.
_FREE_KEYS = (
    "name",
    "seed",
    "data.path",
    "data.eval_batch_size",
    "data.on_error",
    "data.max_errors",
    "data.cache",
    "data.service",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.panels",
)


class Study(Section):
    """The content of a study's JSON file.

    Attributes:
        base: path of the config that all arms extend, relative to the study's file.
        arms: dict from the name of an arm to its changes: a section of config values, merged over
            the base in the way that a config is merged over the one that it extends; or the path of
            a separate config.
        baseline: name of the arm that the others are compared with; default: the first.
        seeds: distinct ints; every arm is trained with each of them.
        scored_classes: names of the classes of a second mean IoU, chosen before the study is run
            (for example those that are frequent enough in the evaluation split); None: no second
            mean.
    """

    schema_: str | None = Field(None, alias="$schema", exclude=True)
    description: str = ""
    base: str | None = None
    arms: dict[str, Any] = Field(min_length=1)
    baseline: str | None = None
    seeds: list[int] = Field(min_length=1)
    scored_classes: list[str] | None = None

    @pydantic.model_validator(mode="after")
    def _parts_fit(self):
        for name, arm in self.arms.items():
            if not name or not all(c.isalnum() or c in "._-" for c in name) or name[0] in ".-":
                raise ValueError(
                    "the name of an arm must consist of letters, digits, '.', '_' and '-', and "
                    f"must not begin with '.' or '-'. Received: {name!r}"
                )
            if not isinstance(arm, dict | str):
                raise ValueError(
                    f"arm {name!r} must be a section of config values or the path of a config. "
                    f"Received: {arm!r}"
                )
            if isinstance(arm, dict):
                if self.base is None:
                    raise ValueError(
                        f"arm {name!r} changes a base config, but `base` is missing. Name a config"
                    )
                if changed := {"seed", "name", "extends"} & set(arm):
                    raise ValueError(
                        f"arm {name!r} must not set {sorted(changed)[0]!r}: the study sets the "
                        "seed and the name, and every arm extends `base`"
                    )
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(
                f"`baseline` must be an arm. Received: {self.baseline!r}. Arms: "
                f"{', '.join(self.arms)}"
            )
        names = [name.casefold() for name in self.arms]  # Each names a folder.
        if len(set(names)) < len(names):
            raise ValueError(
                f"the names of arms must differ in more than case. Received: {', '.join(self.arms)}"
            )
        _check_seeds(self.seeds)
        return self


def _check_seeds(seeds):
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"`seeds` must be distinct and not negative. Received: {seeds}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study with its arms resolved to complete experiments.

    Attributes:
        name: str, the stem of the study's file.
        study: `Study`.
        experiments: dict from arm to `kseg.config.Experiment`, with the config's own seed.
    """

    name: str
    study: Study
    experiments: dict

    @property
    def baseline(self):
        """Name of the arm that the others are compared with."""
        return self.study.baseline or next(iter(self.study.arms))

    def runs(self, arms=None, seeds=None):
        """Lists all runs in training order: every arm with the first seed, then with the next.

        Args:
            arms: names of arms, or None: all.
            seeds: ints, which need not be in the file, or None: those of the file.

        Returns:
            list of `(arm, seed)`.

        Raises:
            ConfigError: if there is no such arm, or a seed is negative or given twice.
        """
        try:
            _check_seeds(seeds or self.study.seeds)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self.check_arms(arms or ())
        chosen = [arm for arm in self.experiments if arms is None or arm in arms]
        return [(arm, seed) for seed in seeds or self.study.seeds for arm in chosen]

    def check_arms(self, arms):
        """Raises a ConfigError if a name in `arms` is not an arm of the study."""
        for arm in arms:
            if arm not in self.experiments:
                raise ConfigError(
                    f"The study {self.name!r} has no arm {arm!r}. It has: "
                    f"{', '.join(self.experiments)}"
                )

    def experiment(self, arm, seed):
        """Returns the experiment of a run: a `kseg.config.Experiment` named `<arm>-<seed>`."""
        values = self.experiments[arm].model_dump(mode="json")
        values |= {"seed": seed, "name": run_name(arm, seed)}
        return config_module.parse(values, source=f"{self.name}: {arm}, seed {seed}")


def load_plan(path):
    """Reads a study's file and the configs that it names.

    Args:
        path: path of a JSON file, see `Study`.

    Returns:
        `Plan`.

    Raises:
        ConfigError: if a file is missing or breaks its schema.
    """
    path = pathlib.Path(path)
    values = config_module.read_json(path)
    try:
        study = Study.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{path}: {config_module.describe(error, values, Study)}") from None
    experiments = {}
    for name, arm in study.arms.items():
        file = path.parent / (arm if isinstance(arm, str) else study.base)
        changes = {} if isinstance(arm, str) else arm
        try:
            experiments[name] = config_module.extend(file, changes)
        except ConfigError as error:
            raise ConfigError(f"{path}: arm {name!r}: {error}") from None
    return Plan(path.stem, study, experiments)


def run_name(arm, seed):
    """Returns the name of a run and of its files: `<arm>-<seed>`."""
    return f"{arm}-{seed}"


def settings(experiment, data_fingerprint, checksums):
    """Collects everything that determines the result of a run, except the seed.

    Files of initial weights are identified by their name and content, not by their folder.

    Args:
        experiment: `kseg.config.Experiment`.
        data_fingerprint: str, hash of the prepared data, see `kseg.commands.study_run.Inputs`.
        checksums: dict from the config key of a file of initial weights to its checksum, or None if
            the file is missing.

    Returns:
        dict from dotted key to a value that JSON can hold.
    """
    values = config_module.flatten(experiment.model_dump(mode="json"))
    kept = {key: value for key, value in values.items() if not _is_free(key)}
    for key, checksum in checksums.items():
        kept[key] = pathlib.PurePath(kept[key]).name
        kept[key + _CHECKSUM] = checksum
    return {**kept, "data.fingerprint": data_fingerprint}


def fingerprint(values):
    """Returns the hexadecimal SHA-256 of the canonical JSON of `settings`."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differing_keys(before, now, experiment):
    """Lists the settings that make recorded results invalid for an experiment.

    Any difference does, except a key that a later version of kseg added and that the experiment
    leaves at its default. Weights that are not on this machine are compared by name, so that tables
    can be written without them.

    Args:
        before: dict, the recorded `settings`.
        now: dict, `settings` of the experiment.
        experiment: `kseg.config.Experiment`.

    Returns:
        sorted list of dotted keys; empty: the results are valid.
    """
    missing = {key for key in now if key.endswith(_CHECKSUM) and now[key] is None}
    changed = {
        key
        for key, value in before.items()
        if key not in missing and now.get(key, _MISSING) != value
    }
    added = now.keys() - before.keys()
    chosen = config_module.flatten(experiment.model_dump(mode="json", exclude_defaults=True))
    return sorted(changed | (added & chosen.keys()))


_MISSING = object()
_CHECKSUM = ".checksum"


def _is_free(key):
    return any(key == free or key.startswith(free + ".") for free in _FREE_KEYS)
