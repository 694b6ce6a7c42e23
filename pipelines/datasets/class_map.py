r"""Class maps: rename, merge, ignore or drop the classes of a source, from JSON or CSV.

    {"car": "vehicle", "truck": "vehicle",     class,becomes
     "unclear": "ignore", "logo": null,        car,vehicle
     "*": "*"}                                 logo,

On the left is the name in the source, on the right the name of the new class; classes with the same
new name are merged. `ignore`: the pixels are neither trained on nor scored. null (an empty cell)
drops the class: its areas are not drawn, so areas beneath them show; in a mask, which has nothing
beneath, its pixels are ignored. `*` stands for every class that the map does not name, and
`"*": "*"` keeps those unchanged; without `*`, the map must name all classes. The new classes are
numbered in the order of the map.
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
    """A map of class names, see the module docstring.

    Args:
        value: path of a JSON or CSV file; a dict from str to str or None; or None, which leaves all
            classes unchanged.

    Attributes:
        name: str, used in messages.
        targets: dict from the source's name to str or None; empty if `value` is None.

    Raises:
        DataError: if the map cannot be read or used.
    """

    def __init__(self, value):
        self.name, pairs = option("class_map"), []
        if isinstance(value, (str, os.PathLike)):
            path = pathlib.Path(os.path.expanduser(value))
            self.name = str(path)
            try:
                content = path.read_bytes()
            except (OSError, ValueError) as error:  # The latter of a zero in the name.
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"The class map {path} cannot be read: {reason}") from None
            text, _ = decode_text(content, path)
            pairs = self._read_csv(text) if path.suffix.lower() == ".csv" else self._read_json(text)
        elif isinstance(value, dict):
            pairs = list(value.items())
        elif value is not None:
            raise DataError(f"{self.name} must be a file, or a dict of names. Received: {value!r}")
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
            `(targets, notes)`: dict from each name to its new name, `IGNORE`, or None if it is
            dropped; list of str, notes on classes of the map that the source lacks.

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
        """Returns the new classes: first those that the map names, in its order, then the others.

        Args:
            targets: dict, as returned by `resolve`.

        Returns:
            list of str.
        """
        named = [target for target in self.targets.values() if target != _OTHERS]
        wanted = set(targets.values())
        found = dict.fromkeys(t for t in [*named, *targets.values()] if t in wanted)
        return [name for name in found if name not in (None, IGNORE)]


@dataclasses.dataclass(frozen=True)
class RelabeledExample:
    """An example with translated labels and possibly another id.

    Attributes:
        id: str.
        example: the original example, as accepted by `pipelines.examples.read_checked`.
        taxonomy: `Taxonomy` of the original classes.
        table: tuple of int, the new label of each original class.
    """

    id: str
    example: object
    taxonomy: Taxonomy = dataclasses.field(repr=False)
    table: tuple

    @property
    def fingerprint(self):
        """The fingerprint of the example and the translation of its labels."""
        label_map = sorted(self.taxonomy.label_map.items())
        return [self.example.id, self.example.fingerprint, label_map, list(self.table)]


def relabel(found, class_map):
    """Applies a class map to a data set whose labels are masks.

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
    """Returns the splits of a data set, with labels translated to other classes.

    Args:
        found: `Found`.
        targets: dict from each of its class names to the new name; None or `IGNORE`: ignored.
        taxonomy: `Taxonomy` of the new classes.
        prefix: str, prepended to the ids.

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
    """Builds the taxonomy of the classes that result from a map.

    Args:
        names: list of str, the new classes.
        targets: dict from the source's names to the new names.
        colors: dict from the source's names to `[red, green, blue]`; may lack some.

    Returns:
        `Taxonomy` with an identity label map; a merged class takes the color of its first source.

    Raises:
        DataError: if no class is left, or too many.
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
    """Returns a class name in composed form (NFC), with single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).split())
