"""CamVid, 11 classes, in the layout of the SegNet tutorial."""

from pipelines.datasets.dataset import Taxonomy, find_splits

_FOLDERS = {split: (split, f"{split}annot") for split in ("train", "val", "test")}


def taxonomy():
    """The 11 classes; void (11 in the files) is ignored."""
    return Taxonomy.load("camvid")


def find_examples(source):
    """Lists the examples of each split that is there.

    Args:
        source: the folder with `train/` and `trainannot/`, `val/` and `valannot/`, `test/` and
            `testannot/`, or any of these pairs; or the folder that holds it as `CamVid`.

    Returns:
        dict from split (`train`, `val`, `test`) to list of `FileExample`.

    Raises:
        DataError: if the layout is another, or a file lacks its partner.
    """
    return find_splits(source, "CamVid", _FOLDERS)
