"""The classes of prepared data, of a run and of exported networks, and their file with checksum.

One description for all of kseg: `Manifest.classes` of the prepared data builds it, a run stores it
in `classes.json`, and an exported network carries it in its assets or beside its file. It imports
nothing heavy, because `pipelines` and the checks of the commands use it.
"""

import dataclasses
import hashlib
import json

from kseg.errors import UserError
from kseg.json_text import parse_json

MAX_CLASSES = 255  # Labels and predictions are uint8, and 255 marks ignored pixels.


@dataclasses.dataclass(frozen=True)
class Classes:
    """Names and colors of the classes, in the order of their numbers.

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

    Raises:
        UserError: if there is no class, or more than `MAX_CLASSES`.
    """

    names: list[str]
    palette: list[list[int]]
    training_images: list[int] | None = None
    categories: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    groups: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    training_pixels: list[int] | None = None

    def __post_init__(self):
        check_num_classes(len(self.names))

    def __len__(self):
        return len(self.names)

    def to_json(self, **more):
        """Serializes the classes, for the file beside an exported network.

        Args:
            **more: further JSON-able values to store.

        Returns:
            str, JSON with `names`, `palette`, `more`, and `sha256` of all of these.
        """
        values = {"names": self.names, "palette": self.palette, **more}
        return json.dumps({**values, "sha256": _digest(values)}) + "\n"

    @classmethod
    def from_json(cls, text):
        """Parses the output of `to_json`; files of earlier versions have no checksum.

        Returns:
            `(classes, more)`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if the text is not such output, or was
                edited.
        """
        values = parse_json(text)
        expected = values.pop("sha256", None)
        if expected is not None and expected != _digest(values):
            raise ValueError("the names or colors of the classes were changed: checksum")
        return cls(values.pop("names"), values.pop("palette")), values


def check_num_classes(num_classes):
    """Refuses a number of classes that labels cannot hold.

    Raises:
        UserError: unless it is 1 to `MAX_CLASSES`.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(
            f"The number of classes must be 1 to {MAX_CLASSES}: labels have 8 bits, and 255 marks "
            f"ignored pixels. Received: num_classes={num_classes}"
        )


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
