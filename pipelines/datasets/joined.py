"""Several sources, of any formats, joined into one data set by class names.

    {"sources": [{"dataset": "coco", "source": "drone", "class_map": {"car": "vehicle", "*": null}},
                 {"dataset": "folder", "source": "street", "split": {"train": 0.8, "val": 0.2}}],
     "classes": ["background", "vehicle"]}

Each source states the kind of data set, its path (relative to this file), optionally a class map
and a name, and the options of its own command; paths among them are relative to this file, or in
the source. Classes of the same name are merged. They are
numbered as in `classes`, which must then list all of them, or in order of first occurrence. Splits
of the same name are joined; ids begin with the name of the source (default: its number, from 1).
"""

import os
import pathlib

from kseg.json_text import parse_json
from pipelines.datasets.annotated import located
from pipelines.datasets.class_map import ClassMap, new_taxonomy, relabel, relabeled
from pipelines.datasets.dataset import Found, shorten
from pipelines.datasets.options import own_options
from pipelines.errors import DataError

EXPECTED = 'a JSON file with `sources`, a list of {"dataset": ..., "source": ...}'
_KEYS = ("sources", "classes")


def find(source):
    """Lists the examples of each split of all sources.

    Args:
        source: path of the JSON file, or a list that holds only this path.

    Returns:
        `Found`.

    Raises:
        DataError: if the file or one of the sources cannot be used.
    """
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    file = pathlib.Path(os.path.expanduser(paths[0] if paths else ""))
    if len(paths) != 1 or not os.path.isfile(file):
        raise DataError(f"The source must be {EXPECTED}. Received: {', '.join(map(str, paths))}")
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} must be JSON: {error}") from None
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not set(content) <= set(_KEYS):
        raise DataError(f"{file} must be {EXPECTED}, and perhaps `classes`, a list of names")
    found, notes = {}, []
    for number, entry in enumerate(entries, 1):
        name = str(entry.get("name", number)) if isinstance(entry, dict) else ""
        if not name or name in found or "/" in name:
            raise DataError(f"{file}, source {number}: must be an object with a name of its own")
        found[name] = _find_one(file, number, entry)
        notes += [f"{name}: {note}" for note in found[name].notes]
    colors = {}
    for part in found.values():
        for name, color in zip(part.taxonomy.class_names, part.taxonomy.palette, strict=True):
            colors.setdefault(name, color)
    order = content.get("classes") or list(colors)
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise DataError(f"{file}: `classes` must be a list of names")
    if missing := [repr(name) for name in colors if name not in order]:
        raise DataError(
            f"{file}: `classes` must have all classes. Missing: {shorten(missing)}. Add them, or "
            "map them in `class_map` of their source"
        )
    targets = {name: name for name in order}
    taxonomy = new_taxonomy(list(targets), targets, colors)
    splits = {}
    for name, part in found.items():
        for split, examples in relabeled(part, targets, taxonomy, f"{name}/").items():
            splits.setdefault(split, []).extend(examples)
    return Found(taxonomy, splits, notes)


def _find_one(file, number, entry):
    from pipelines import datasets  # Imported here: it imports this module.

    where = f"{file}, source {number}"
    options = {key: value for key, value in entry.items() if key != "name"}
    name, source = options.pop("dataset", None), options.pop("source", None)
    if not isinstance(name, str) or name not in datasets.FILE_DATASETS or name == "joined":
        names = ", ".join(key for key in datasets.FILE_DATASETS if key != "joined")
        raise DataError(f"{where}: `dataset` must be one of {names}. Received: {name!r}")
    sources = [source] if isinstance(source, str) else source
    if (
        not isinstance(sources, list)
        or not sources
        or not all(isinstance(path, str) for path in sources)
    ):
        raise DataError(f"{where}: `source` must be a path or a list of them. Received: {source!r}")
    sources = [file.parent / pathlib.Path(os.path.expanduser(path)) for path in sources]
    class_map = options.pop("class_map", None)
    if isinstance(class_map, str):
        class_map = file.parent / pathlib.Path(os.path.expanduser(class_map))
    find = datasets.get(name).find
    known = [name for name in own_options(find) if name != "tile"]
    if unknown := sorted(options.keys() - set(known)):
        known = ", ".join([*known, *(["class_map"] if "class_map" not in known else [])])
        raise DataError(f"{where}: {name} has no option {unknown[0]!r}. Its options: {known}")
    if isinstance(options.get("classes"), str):
        options["classes"] = file.parent / pathlib.Path(os.path.expanduser(options["classes"]))
    for key in ("split", "annotations"):
        if isinstance(options.get(key), dict):
            places = [file.parent, *sources]
            options[key] = {split: _resolve(part, places) for split, part in options[key].items()}
    with located(where):
        mapping = ClassMap(class_map)
        if name in datasets.IMPORTERS:
            return find(sources, class_map=mapping, **options)
        found = find(sources, **options)
        return relabel(found, mapping) if mapping.given else found


def _resolve(path, places):
    """Finds the first existing file of a path; without one, or for other values, returns the value.

    A path that is left as it is may be in an archive.
    """
    if not isinstance(path, str):
        return path
    files = [place / pathlib.Path(os.path.expanduser(path)) for place in places]
    return str(next((file for file in files if os.path.isfile(file)), path))
