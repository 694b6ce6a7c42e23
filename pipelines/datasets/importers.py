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
from pipelines.datasets.annotated import Files, head_of
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
    files, found = Files(source), {}
    modules = {**IMPORTERS, "huggingface": huggingface}
    ends = {end for module in modules.values() for end in module.ENDS}
    for path, file in files.with_end(*ends):
        head, _ = head_of(file)
        for name, module in modules.items():
            fits = name not in found and path.lower().endswith(module.ENDS)
            if fits and module.matches(path, head, files):
                found[name] = path
    return next(((name, found[name]) for name in modules if name in found), None)


def explain(source, error):
    """Returns the error for a source without masks; points to an importer that can read the source.

    Args:
        source: `pipelines.sources.Source`.
        error: `DataError`, what is wrong with it as a folder of images and masks.

    Returns:
        `DataError`.
    """
    try:
        found = recognize(source)
    except DataError:  # Such as a damaged archive: the first error is about the option at hand.
        found = None
    if found is None:
        return error
    name, path = found
    paths = source.paths if len(source.paths) > 1 else source.name
    return DataError(
        f"{source.name} holds annotations ({path}), not masks with a class table. Read them by: "
        f"kseg prepare {name} {option('source', paths)}"
    )
