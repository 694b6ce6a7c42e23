"""CamVid, 11 classes, in the layout of the SegNet tutorial."""

import pathlib

from pipelines.datasets.dataset import Taxonomy, pair_files, wrong_layout

_SPLITS = ("train", "val", "test")


def taxonomy():
    """The 11 classes; void (11 in the files) is ignored."""
    return Taxonomy.load("camvid")


def find_examples(source):
    """Lists the examples of each split that is there.

    Args:
        source: the folder with `train/`, `trainannot/`, `val/`, `valannot/`, ... or its parent.

    Returns:
        dict from split to list of `FileExample`.

    Raises:
        DataError: if no split is there, or half of one.
    """
    root = pathlib.Path(source)
    if (root / "CamVid").is_dir():
        root = root / "CamVid"
    splits = {}
    for split in _SPLITS:
        images, labels = root / split, root / f"{split}annot"
        if images.is_dir() and labels.is_dir():
            splits[split] = pair_files(images, labels)
    if not splits:
        raise wrong_layout(
            source, "train/ and trainannot/, val/ and valannot/, test/ and testannot/"
        )
    return splits
