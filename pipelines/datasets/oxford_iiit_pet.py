"""Oxford-IIIT Pet: cats and dogs against the background."""

from pipelines.datasets.dataset import (
    Found,
    Taxonomy,
    list_files,
    pair_listed,
    read_list,
    wrong_layout,
)
from pipelines.errors import DataError
from pipelines.sources import open_source

_LISTS = {"train": "trainval.txt", "test": "test.txt"}


def taxonomy():
    """Returns pet (1 in the files) and background (2); the unclassified edge (3) is ignored."""
    return Taxonomy.load("oxford_iiit_pet")


def find(source):
    """Lists the examples of each split that is present.

    Args:
        source: where `images/` and `annotations/` are, such as images.tar.gz and
            annotations.tar.gz; as for `pipelines.sources.open_source`.

    Returns:
        `Found`, with splits `train` (the official trainval), `test`.

    Raises:
        DataError: if the layout is not the expected one, or a file lacks its partner.
    """
    source = open_source(source)
    images, labels = source.find("images"), source.find("annotations/trimaps")
    if images is None or labels is None:
        raise wrong_layout(source, "images/ and annotations/trimaps/")
    images = list_files(images / "images", (".jpg",))
    trimaps = list_files(labels / "annotations/trimaps", (".png",))
    splits = {}
    for split, name in _LISTS.items():
        if names := labels.file(f"annotations/{name}"):
            listed = [line.split()[0] for line in read_list(names)]
            splits[split] = pair_listed(listed, images, trimaps, names)
    if not splits:
        raise DataError(f"{labels / 'annotations'} must hold {', '.join(_LISTS.values())} or one")
    return Found(taxonomy(), splits)
