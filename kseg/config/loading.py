"""Config files: read, merged with those they extend, overridden from the command line, checked."""

import copy
import difflib
import json
import math
import os
import pathlib
import re
import sys
from typing import Any

import pydantic

from kseg.config.messages import describe, shown
from kseg.config.schema import ConfigError, Experiment
from kseg.errors import option

_MAX_DEPTH = 32  # Largest depth of nested values, and of files that extend each other.
_MAX_BYTES = 1 << 20
_LIMIT = 1 << 31
# Two keys of `train` that set the length of a run: the one set last takes precedence.
_LENGTHS = {"steps": "epochs", "epochs": "steps"}


def load(path, overrides=()) -> Experiment:
    """Reads a config file, and those it extends.

    Values are merged key by key; a list, or a section with a different `name` (such as another
    head), replaces the earlier value.

    Args:
        path: JSON file, or the name of a config that comes with kseg, see `find`. Its stem is the
            default of `name`.
        overrides: strings `"a.b=value"`; the value is parsed as JSON, or else kept as a string. A
            number in the key is a list index: `"contrast.0.weight=0.2"`. If a smaller `train.steps`
            ends before the file's warm-ups or the start steps of objectives, all of these are
            shortened by the same factor, which is reported on stderr.

    Raises:
        ConfigError: if a file is missing, not JSON, extends itself, or they break the schema.
    """
    path = find(path)
    values = copy.deepcopy(_read(path, (), {}))
    steps = _steps(values)
    for override in overrides:
        _apply_override(values, override)
    shortened = _shorten(values, steps, {override.partition("=")[0] for override in overrides})
    if shortened:
        print(
            f"note: train.steps={_steps(values)} is too short for the warm-ups of {path}, which "
            f"are meant for {steps} steps. They are shortened in proportion: "
            f"{' '.join(shortened)}. For other values use {option('overrides')}",
            file=sys.stderr,
            flush=True,
        )
    values.setdefault("name", path.stem)
    return parse(values, source=str(path))


def with_steps(experiment, num_images) -> Experiment:
    """Converts `train.epochs` of an experiment to steps, unless it already has steps.

    Args:
        experiment: `Experiment`.
        num_images: float > 0, images per epoch.

    Raises:
        ConfigError: if a number of steps in it does not fit the run's.
    """
    epochs = experiment.train.epochs
    if epochs is None:
        return experiment
    steps = math.ceil(epochs * num_images / experiment.data.batch_size)
    values = experiment.model_dump(mode="json")
    values["train"] |= {"steps": steps, "epochs": None}
    return parse(values, source=f"train.epochs={epochs:g} of {num_images:g} images, {steps} steps")


def _steps(values):
    """Returns `train.steps` of unchecked values; None if it is not a positive int."""
    train = values.get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if type(steps) is int and steps > 0 else None


def _shorten(values, before, given):
    """Scales down keys that count steps if they do not fit a shorter run.

    Args:
        values: dict of an experiment, unchecked; changed in place.
        before: int or None, the steps that it was made for.
        given: set of str, keys that the user chose and that stay.

    Returns:
        list of str `key=value`, what was changed.
    """
    steps = _steps(values)
    if not before or not steps or steps >= before:
        return []
    sections = {"schedule": values.get("schedule")}
    contrast = values.get("contrast")
    for index, objective in enumerate(contrast if isinstance(contrast, list) else []):
        sections[f"contrast.{index}"] = objective
    free, misfit = [], False
    for place, section in sections.items():
        if not isinstance(section, dict) or place in given or place.split(".")[0] in given:
            continue
        counts = {key: section.get(key, 0) for key in ("start_step", "warmup_steps")}
        if any(type(count) is not int or count < 0 for count in counts.values()):
            continue
        # The rate's warm-up must end before the run does; a weight's may end with it.
        end = sum(counts.values()) + (place == "schedule")
        misfit |= steps < end <= before
        free += [
            (section, key, f"{place}.{key}")
            for key, count in counts.items()
            if count and f"{place}.{key}" not in given
        ]
    if not misfit:
        return []
    for section, key, _ in free:
        section[key] = section[key] * steps // before
    return [f"{name}={section[key]}" for section, key, name in free]


def extend(path, values) -> Experiment:
    """Builds an experiment that extends a config file, as another file would.

    Args:
        path: JSON file. Its stem is the default of `name`.
        values: dict, merged over the file's values as by `extends`.

    Raises:
        ConfigError: as in `load`.
    """
    path = find(path)
    merged = _merge(_read(path, (), {}), values)
    merged.setdefault("name", path.stem)
    return parse(merged, source=str(path))


def shipped():
    """Finds the folder of the configs that come with kseg.

    Returns:
        `pathlib.Path`: inside of the installed package, or `configs` of the checkout.
    """
    package = pathlib.Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find(name, folder=None):
    """Finds a config file by its path, or by the name of a config that comes with kseg.

    Args:
        name: path, or name such as `camvid_small_ce` or `base/camvid`, with or without `.json`.
        folder: `pathlib.Path` that a path is relative to; None: the current one.

    Returns:
        `pathlib.Path`. A path that exists wins over a name; if there is neither, the path.
    """
    path = pathlib.Path(name) if folder is None else folder / name
    plain = re.fullmatch(r"[\w-]+(?:/[\w-]+)?(?:\.json)?", str(name))
    if plain and not os.path.lexists(path):
        candidate = shipped() / f"{str(name).removesuffix('.json')}.json"
        if os.path.isfile(candidate) and candidate.name != "schema.json":
            return candidate
    return path


def _read(path, readers, known):
    """Reads the values of a file, merged over those of the files that it extends.

    Args:
        path: `pathlib.Path`.
        readers: paths of the files that extend it.
        known: dict from path to earlier results of this function; several files may share a base.
    """
    try:
        resolved = pathlib.Path(os.path.realpath(path))
    except ValueError:  # A null byte or an incomplete character.
        raise ConfigError(f"There is no config file {shown(str(path))}") from None
    if resolved in readers:
        raise ConfigError(f"{path} extends itself: {' -> '.join(p.name for p in readers)}")
    if len(readers) > _MAX_DEPTH:
        raise ConfigError(f"{path}: `extends` must not go deeper than {_MAX_DEPTH} files")
    if resolved not in known:
        values = read_json(path)
        for key in ("$schema", "$comment"):
            values.pop(key, None)
        bases = values.pop("extends", None)
        bases = [bases] if isinstance(bases, str) else bases or []
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(
                f"{path}: `extends` must be the name of a config file, or a list of names. "
                f"Received: {shown(bases)}"
            )
        merged = {}
        for base in bases:
            inherited = dict(_read(find(base, path.parent), (*readers, resolved), known))
            inherited.pop("name", None)
            merged = _merge(merged, inherited)
        known[resolved] = _merge(merged, values)
    return known[resolved]


def read_json(path) -> dict:
    """Reads a JSON file that holds an object.

    Raises:
        ConfigError: if it is missing, not JSON, holds something else, or a key twice.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ConfigError(f"{path} must be a file: it is a folder, a pipe or a device")
        if size > _MAX_BYTES:
            raise ConfigError(f"{path} has {size} bytes, which is no config: {_MAX_BYTES} at most")
        # With or without a byte order mark, which editors on Windows write.
        values = _parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        known = sorted(p.name for p in path.parent.glob("*.json") if p.name != "schema.json")
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        named = [p.stem for p in shipped().glob("*.json")] if path.parent == pathlib.Path() else []
        if near_name := difflib.get_close_matches(path.stem, named, n=1):
            hint = f" Did you mean {near_name[0]}, which comes with kseg?"
        elif not hint and path.stem != "schema" and (shipped() / path.name).is_file():
            hint = f" The one that comes with kseg is {path.stem}, without a folder"
        raise ConfigError(
            f"There is no config file {path}.{hint or ' `kseg config` lists those of kseg'}"
        ) from None
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is not a readable JSON file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object. Received: {type(values).__name__}")
    return values


def _parse_json(text):
    """Parses strict JSON: rejects duplicate keys, NaN, and nesting hundreds of levels deep.

    Raises:
        ValueError: if the text is not strict JSON.
    """

    def unique(pairs):
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} is there twice")
        return values

    def refuse(constant):
        raise ValueError(f"{constant} is no number of JSON")

    try:
        values = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        _check_plain(values)
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    return values


def _check_plain(values, depth=0):
    """Rejects values that no key accepts, or that would break messages, file names or tensors."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its values are nested deeper than {_MAX_DEPTH} levels")
    if isinstance(values, dict):
        values = [*values.keys(), *values.values()]
    if isinstance(values, list):
        for value in values:
            _check_plain(value, depth + 1)
    elif isinstance(values, str):
        if "\0" in values or (not values.isascii() and _has_surrogates(values)):
            raise ValueError(f"{shown(values)} holds characters that no text has")
    elif isinstance(values, int | float) and abs(values) >= _LIMIT:
        raise ValueError(f"numbers must be below 2^31. Received: {shown(values)}")


def _has_surrogates(text):
    return any("\ud800" <= character <= "\udfff" for character in text)


def _merge(below, above, path=()):
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if path == ("train",):
        for key, other in _LENGTHS.items():
            if above.get(key) is not None and above.get(other) is None:
                below = {k: v for k, v in below.items() if k != other}
    if "name" in below and above.get("name", below["name"]) != below["name"]:
        return above
    merged = {k: _merge(below.get(k), value, (*path, k)) for k, value in above.items()}
    return {**below, **merged}


def parse(values, *, source) -> Experiment:
    """Checks a dictionary against the schema; `source` names it in errors.

    Raises:
        ConfigError: one line for each rule that is broken.
    """
    try:
        return Experiment.model_validate(values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, values)}") from None


def flatten(value, prefix="") -> dict[str, Any]:
    """Flattens a value to a dict from dotted key to leaf; empty dicts and lists are leaves."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return {prefix: value}
    flat = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


def _apply_override(values, override):
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"An override must be key=value, such as train.steps=100. Received: {override!r}"
        )
    if key in ("extends", "$schema", "$comment"):
        raise ConfigError(
            f"`{key}` is a key of config files, not of {option('overrides')}. Write a file, or use "
            f"{option('config')}"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    try:
        if not isinstance(value, str):
            value = _parse_json(text)
        _check_plain([key, value])
    except ValueError as error:
        raise ConfigError(f"{option('overrides', [shown(key)])}: {error}") from None
    *parents, last = key.split(".")
    node = values
    try:
        for parent in parents:
            if isinstance(node, list):
                node = node[int(parent)]
            else:
                if node.get(parent) is None:
                    node[parent] = {}
                node = node[parent]
        if parents == ["train"] and last in _LENGTHS and value is not None:
            node.pop(_LENGTHS[last], None)
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(
            f"{option('overrides', [override])}: the config has no key {key!r}"
        ) from None
