"""Table of the importers of annotation files, and recognition of a source's format."""

from kseg.errors import option
from pipelines.datasets import (
    coco,
    cvat,
    huggingface,
    label_studio,
    labelme,
    supervisely,
    yolo,
)
from pipelines.datasets.annotated import Files
from pipelines.errors import DataError

IMPORTERS = {
    "coco": coco,
    "cvat": cvat,
    "label_studio": label_studio,
    "labelme": labelme,
    "supervisely": supervisely,
    "yolo": yolo,
}


def recognize(source):
    """Finds the importer of a source.

    Args:
        source: as for `pipelines.sources.open_source`.

    Returns:
        `(name, path)`, the importer's name and the path of a file that it reads; None if none fits.
    """
    files = Files(source)
    for name, module in [*IMPORTERS.items(), ("huggingface", huggingface)]:
        if path := module.recognize(files):
            return name, path
    return None


def explain(source, error):
    """The error for a source without masks; points to an importer that can read the source.

    Args:
        source: `pipelines.sources.Source`.
        error: `DataError`, what is wrong with it as a folder of images and masks.

    Returns:
        `DataError`.
    """
    found = recognize(source)
    if found is None:
        return error
    name, path = found
    return DataError(
        f"{source.name} holds annotations ({path}), not masks with a class table. Read them by: "
        f"kseg prepare {name} {option('source', source.name)}"
    )
