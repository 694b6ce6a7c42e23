"""CamVid, 11 classes, in the layout of the SegNet tutorial."""

from pipelines.datasets.dataset import Found, Taxonomy, find_splits

_FOLDERS = {split: (split, f"{split}annot") for split in ("train", "val", "test")}


def taxonomy():
    """Returns the 11 classes; void (11 in the files) is ignored."""
    return Taxonomy.load("camvid")


def find(source):
    """Lists the examples of each split that is present.

    Args:
        source: where `train/` and `trainannot/`, `val/` and `valannot/`, `test/` and `testannot/`,
            or any of these pairs, are; as for `pipelines.sources.open_source`.

    Returns:
        `Found`, with splits `train`, `val`, `test`.

    Raises:
        DataError: if the layout is not the expected one, or a file lacks its partner.
    """
    return Found(taxonomy(), find_splits(source, _FOLDERS))
