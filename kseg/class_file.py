"""The file of the classes that lies beside an exported network, under a checksum."""

import hashlib
import json

from kseg.runs import Classes


def to_text(classes, **more):
    """The content of the file: JSON with `names`, `palette`, `more`, and `sha256` of all of these.

    Args:
        classes: `kseg.runs.Classes`.
        **more: what else the file tells, as JSON has it.
    """
    values = {"names": classes.names, "palette": classes.palette, **more}
    return json.dumps({**values, "sha256": _digest(values)}) + "\n"


def from_text(text):
    """Reads what `to_text` gave; files of earlier versions have no checksum.

    Returns:
        `(classes, more)`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if the text is something else, or was
            changed.
    """
    values = json.loads(text)
    expected = values.pop("sha256", None)
    if expected is not None and expected != _digest(values):
        raise ValueError("the names or colours of the classes were changed: checksum")
    return Classes(values.pop("names"), values.pop("palette")), values


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
