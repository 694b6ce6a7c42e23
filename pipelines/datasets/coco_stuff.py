"""COCO-Stuff 10k, 171 classes."""

from kseg.errors import option
from pipelines.datasets.dataset import (
    Found,
    Taxonomy,
    as_label_map,
    facts,
    find_splits,
    list_files,
    pair_listed,
    read_list,
    wrong_layout,
)
from pipelines.datasets.label_files import INDEX_MASK, MatVariable, Recoded
from pipelines.errors import DataError
from pipelines.sources import open_source

ENCODINGS = ("release_1_1", "release_1_0", "stuffthingmaps")
# Converters call the official test images `val`.
_CONVERTED = {"train": ("train/image", "train/label"), "test": ("val/image", "val/label")}
_EXPECTED = (
    "images/, annotations/ and imageLists/ (cocostuff-10k-v1.1.zip), or train/image/, "
    "train/label/, val/image/ and val/label/ (converted)"
)


def taxonomy():
    """Returns the 171 classes that occur; unlabeled pixels and unused numbers are ignored."""
    return Taxonomy.load("coco_stuff")


def find(source, encoding=ENCODINGS[0]):
    """Lists the examples of each split that is present.

    Args:
        source: where `images/`, `annotations/` (MATLAB files, or PNGs) and `imageLists/` are, or
            `train/` and `val/` with `image/` and `label/` in them; as for
            `pipelines.sources.open_source`.
        encoding: str, what the labels hold: `release_1_1`: 1 to 182, 0 is unlabeled;
            `release_1_0`: 2 to 172, 1 is unlabeled; `stuffthingmaps`: 0 to 181, 255 is unlabeled.

    Returns:
        `Found`, with splits `train`, `test`.

    Raises:
        DataError: if the layout or the encoding is unknown, or a file lacks its partner.
    """
    if encoding not in ENCODINGS:
        raise DataError(
            f"{option('encoding')} must be one of {', '.join(ENCODINGS)}. Received: {encoding!r}"
        )
    source = open_source(source)
    official = source.find("imageLists", "images", "annotations")
    if official is None:
        if source.find("val/image", "val/label") or source.find("train/image", "train/label"):
            reader = _reader(INDEX_MASK, encoding)
            return Found(taxonomy(), find_splits(source, _CONVERTED, decode=reader))
        raise wrong_layout(source, _EXPECTED)
    images = list_files(official / "images", (".jpg",))
    labels, reader = list_files(official / "annotations", (".mat",)), MatVariable("S")
    if not labels:
        labels, reader = list_files(official / "annotations", (".png",)), INDEX_MASK
    splits = {}
    for split in ("train", "test"):
        if names := official.file(f"imageLists/{split}.txt"):
            splits[split] = pair_listed(
                read_list(names), images, labels, names, decode=_reader(reader, encoding)
            )
    if not splits:
        raise DataError(f"{official / 'imageLists'} must hold train.txt, test.txt or both")
    return Found(taxonomy(), splits)


def _reader(reader, encoding):
    """Wraps a reader so that its values become the numbers of release 1.1."""
    if encoding == "release_1_1":
        return reader
    back = {label: value for value, label in taxonomy().label_map.items()}
    back[255] = 0
    other = as_label_map(facts("coco_stuff")[f"label_map_{encoding}"])
    table = [back[other[value]] if value in other else -1 for value in range(max(other) + 1)]
    return Recoded(reader, f"the encoding {encoding}", tuple(table))
