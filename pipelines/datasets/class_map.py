r"""Classes of a source renamed, merged, ignored and dropped by a map, as JSON or CSV.

    {"car": "vehicle", "truck": "vehicle",     class,becomes
     "unclear": "ignore", "logo": null,        car,vehicle
     "*": "*"}                                 logo,

Left is the source's name, right that of the class it becomes: two that become the same are merged.
`ignore`: its pixels are neither trained on nor scored. null (an empty cell): an area is not drawn,
so what lies beneath is seen; in a mask, where nothing lies beneath, its pixels are ignored. `*` is
every class that the map does not name, and `"*": "*"` keeps those as they are; without it, the map
must name all. The new classes are numbered in the order of the map.
"""

import csv
import dataclasses
import io
import os
import pathlib
import unicodedata

from kseg.errors import option
from kseg.json_text import parse_json
from pipelines.datasets.class_table import invented_color
from pipelines.datasets.dataset import IGNORE_LABEL, Found, Taxonomy, shorten
from pipelines.datasets.text_files import decode_text
from pipelines.errors import DataError

IGNORE = "ignore"
_OTHERS = "*"
_HEADS = (["class", "becomes"], ["from", "to"], ["source", "target"])


class ClassMap:
    """A map of class names; see the module.

    Args:
        value: path of a JSON or CSV file, a dict of str to str or None, or None: all stay as
            they are.

    Attributes:
        name: str, for messages.
        targets: dict from the source's name to str or None; empty for None.

    Raises:
        DataError: if it cannot be read or used.
    """

    def __init__(self, value):
        self.name, pairs = option("class_map"), []
        if isinstance(value, (str, os.PathLike)):
            path = pathlib.Path(value).expanduser()
            self.name = str(path)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"The class map {path} cannot be read: {error.strerror}") from None
            text, _ = decode_text(content, path)
            pairs = self._read_csv(text) if path.suffix.lower() == ".csv" else self._read_json(text)
        elif isinstance(value, dict):
            pairs = list(value.items())
        self.given = value is not None
        self.targets = {}
        for key, target in pairs:
            if not isinstance(key, str) or not (target is None or isinstance(target, str)):
                raise DataError(
                    f"{self.name} must map names to names or null. Received: {key!r}: {target!r}"
                )
            key, target = clean_name(key), clean_name(target or "") or None
            if key in self.targets:
                raise DataError(f"{self.name} must name a class once. Named twice: {key!r}")
            if target == _OTHERS and key != _OTHERS:
                raise DataError(f"{self.name}: only '*' can become '*'. Received: {key!r}")
            self.targets[key] = target
        if self.given and not self.targets:
            raise DataError(f"{self.name} must name classes, and is empty")

    def _read_json(self, text):
        try:
            found = parse_json(text, object_pairs_hook=list)
        except ValueError as error:
            raise DataError(f"{self.name} must be JSON, or CSV and end in .csv: {error}") from None
        if not isinstance(found, list) or not all(isinstance(pair, tuple) for pair in found):
            raise DataError(
                f'{self.name} must map names to names, such as {{"car": "vehicle", "logo": null}}'
            )
        return found

    def _read_csv(self, text):
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
        except csv.Error as error:
            raise DataError(f"{self.name} is no sound CSV: {error}") from None
        if rows and [cell.strip().lower() for cell in rows[0]] in _HEADS:
            rows = rows[1:]
        for row in rows:
            if len(row) > 2:
                raise DataError(
                    f"{self.name}: a row must be a class and what it becomes, not {row}"
                )
        return [(row[0], row[1] if len(row) > 1 else None) for row in rows]

    def resolve(self, names):
        """Maps the classes of a source.

        Args:
            names: list of str, all classes of the source.

        Returns:
            `(targets, notes)`: dict from each name to its new one, `IGNORE`, or None if it is
            dropped; and a list of str, what the map names that is not in the source.

        Raises:
            DataError: if the map lacks a class.
        """
        if not self.given:
            return {name: name for name in names}, []
        missing = [name for name in names if name not in self.targets]
        if missing and _OTHERS not in self.targets:
            raise DataError(
                f"{self.name} must name every class of the source. Missing: "
                f"{shorten(list(map(repr, missing)))}. Add them, or '*' for all others: "
                '"*": null drops them, "*": "*" keeps them'
            )
        others = self.targets.get(_OTHERS)
        found = {
            name: self.targets.get(name, name if others == _OTHERS else others) for name in names
        }
        strange = [repr(name) for name in self.targets if name not in found and name != _OTHERS]
        notes = [f"{self.name} names what the source lacks: {shorten(strange)}"] if strange else []
        return found, notes

    def order(self, targets):
        """The new classes: those that the map names, in its order, then the others.

        Args:
            targets: dict, of `resolve`.

        Returns:
            list of str.
        """
        named = [target for target in self.targets.values() if target != _OTHERS]
        wanted = set(targets.values())
        found = dict.fromkeys(t for t in [*named, *targets.values()] if t in wanted)
        return [name for name in found if name not in (None, IGNORE)]


@dataclasses.dataclass(frozen=True)
class RelabeledExample:
    """An example whose labels are translated, perhaps under another id.

    Attributes:
        id: str.
        example: the example itself, as `pipelines.examples.read_checked` takes it.
        taxonomy: `Taxonomy` of its own classes.
        table: tuple of int, the new label of each of them.
    """

    id: str
    example: object
    taxonomy: Taxonomy = dataclasses.field(repr=False)
    table: tuple

    @property
    def fingerprint(self):
        """That of the example, and the labels."""
        label_map = sorted(self.taxonomy.label_map.items())
        return [self.example.id, self.example.fingerprint, label_map, list(self.table)]


def relabel(found, class_map):
    """Applies a class map to a data set of masks.

    Args:
        found: `Found`.
        class_map: `ClassMap`.

    Returns:
        `Found`.

    Raises:
        DataError: if the map lacks a class.
    """
    names = found.taxonomy.class_names
    targets, notes = class_map.resolve(names)
    taxonomy = new_taxonomy(
        class_map.order(targets), targets, dict(zip(names, found.taxonomy.palette, strict=True))
    )
    return Found(taxonomy, relabeled(found, targets, taxonomy), [*found.notes, *notes])


def relabeled(found, targets, taxonomy, prefix=""):
    """The splits of a data set with the labels of other classes.

    Args:
        found: `Found`.
        targets: dict from each of its class names to the new one; None or `IGNORE`: ignored.
        taxonomy: `Taxonomy` of the new classes.
        prefix: str, put before the ids.

    Returns:
        dict from split to list of `RelabeledExample`.
    """
    labels = {name: label for label, name in enumerate(taxonomy.class_names)}
    table = tuple(labels.get(targets[n], IGNORE_LABEL) for n in found.taxonomy.class_names)
    return {
        split: [RelabeledExample(prefix + e.id, e, found.taxonomy, table) for e in examples]
        for split, examples in found.splits.items()
    }


def new_taxonomy(names, targets, colors):
    """Describes classes that a map made.

    Args:
        names: list of str, the new classes.
        targets: dict from the source's names to new ones.
        colors: dict from the source's names to `[red, green, blue]`; may lack some.

    Returns:
        `Taxonomy`, whose labels are translated already: a merged class has the color of the first.

    Raises:
        DataError: if there is no class left, or too many.
    """
    if not names:
        raise DataError("No class is left: all are ignored or dropped by the class map")
    found = {}
    for name, target in targets.items():
        if colors.get(name) is not None:
            found.setdefault(target, list(colors[name]))
    palette = [found.get(name) or list(invented_color(i)) for i, name in enumerate(names)]
    label_map = {label: label for label in [*range(len(names)), IGNORE_LABEL]}
    return Taxonomy(list(names), palette, label_map)


def clean_name(name):
    """A class name in composed letters, with single blanks."""
    return " ".join(unicodedata.normalize("NFC", name).split())
