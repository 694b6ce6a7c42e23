"""Data sets: their files, classes and label maps.

Each module, and each task of CaDIS, has `find(source, **options)`, which returns a `Found`: a
`Taxonomy` and a dict from split to a list of examples for `pipelines.records.write`. If the classes
do not depend on the source, it also has `taxonomy()`.
"""

from pipelines.datasets import (
    ade20k,
    cadis,
    camvid,
    cityscapes,
    coco_stuff,
    folder,
    huggingface,
    joined,
    oxford_iiit_pet,
    pascal_context,
    pascal_voc,
    synthetic,
)
from pipelines.datasets.dataset import facts
from pipelines.datasets.importers import IMPORTERS
from pipelines.errors import DataError

FILE_DATASETS = {
    "ade20k": ade20k,
    **cadis.TASKS,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "coco_stuff": coco_stuff,
    "folder": folder,
    "huggingface": huggingface,
    "joined": joined,
    "oxford_iiit_pet": oxford_iiit_pet,
    "pascal_context": pascal_context,
    "pascal_voc": pascal_voc,
    **IMPORTERS,
}
DATASETS = {**FILE_DATASETS, "synthetic": synthetic}


def get(name):
    """Returns the module of a data set.

    Raises:
        DataError: if the name is unknown.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}. Use one of: {', '.join(DATASETS)}")
    return DATASETS[name]


def describe(name):
    """Returns the facts about a data set besides its classes; empty for a user's own.

    Args:
        name: str.

    Returns:
        dict, `homepage` and `split_images` (dict from split to the published number of
        images) among others.

    Raises:
        DataError: if the name is unknown.
    """
    get(name)
    if name in ("folder", "huggingface", "joined") or name in IMPORTERS:
        return {}
    return facts("cadis" if name in cadis.TASKS else name)
