"""PASCAL VOC segmentation: 20 classes and the background, with the standard palette.

    VOCdevkit/VOC2012/JPEGImages/  SegmentationClass/  ImageSets/Segmentation/train.txt, val.txt

Masks hold the class numbers or, if converted to RGB by other tools, the class colors; the border,
255 or (224, 224, 192), is ignored. `SegmentationClassAug` is used where `SegmentationClass` is
missing. Other data sets in this layout, with a labelmap.txt of their own classes, are read by
`folder`.
"""

import json

from pipelines.datasets.class_table import ClassTable
from pipelines.datasets.dataset import (
    Taxonomy,
    facts,
    list_files,
    pair_listed,
    read_list,
    wrong_layout,
)
from pipelines.datasets.masks import read_masks
from pipelines.errors import DataError
from pipelines.sources import open_source

_SPLITS = ("train", "val", "test", "trainaug")
_BORDER = {"name": "border", "color": [224, 224, 192], "value": 255, "ignore": True}
_EXPECTED = "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/train.txt or val.txt"


def taxonomy():
    """Returns the 21 classes; the border is ignored."""
    return Taxonomy.load("pascal_voc")


def find(source):
    """Lists the examples of each split that is present and has masks.

    Args:
        source: as for `pipelines.sources.open_source`.

    Returns:
        `Found`, with splits `train` and `val`; the larger `trainaug`, if present, becomes `train`.

    Raises:
        DataError: if the layout is not the expected one, or a file lacks its partner.
    """
    source = open_source(source)
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        if root := source.find("JPEGImages", folder, "ImageSets/Segmentation"):
            break
    else:
        raise wrong_layout(source, _EXPECTED)
    images = list_files(root / "JPEGImages", (".jpg", ".jpeg", ".png"))
    labels = list_files(root / folder, (".png",))
    splits = {}
    for split in _SPLITS:
        if file := root.file(f"ImageSets/Segmentation/{split}.txt"):
            names = read_list(file)
            if split != "test" or any(name in labels for name in names):
                splits["train" if split == "trainaug" else split] = pair_listed(
                    names, images, labels, file
                )
    if not splits:
        raise DataError(f"{root}/ImageSets/Segmentation must hold train.txt, val.txt or both")
    rows = [{**c, "value": i} for i, c in enumerate(facts("pascal_voc")["classes"])]
    table = ClassTable(json.dumps([*rows, _BORDER]).encode(), "the classes of PASCAL VOC")
    return read_masks(table, splits, taxonomy=taxonomy())
