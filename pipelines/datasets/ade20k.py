"""ADE20K scene parsing, 150 classes (ADEChallengeData2016)."""

import pathlib

from pipelines.datasets.dataset import Taxonomy, pair_files, wrong_layout

_SPLITS = {"train": "training", "val": "validation"}


def taxonomy():
    """The 150 classes; other objects (0 in the files) are ignored."""
    return Taxonomy.load("ade20k")


def find_examples(source):
    """Lists the examples of each split that is there.

    Args:
        source: the folder with `images/` and `annotations/`, each with `training/` or
            `validation/`, or the parent of `ADEChallengeData2016`.

    Returns:
        dict from split (`train`, `val`) to list of `FileExample`.

    Raises:
        DataError: if no split is there.
    """
    root = pathlib.Path(source)
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    splits = {}
    for split, folder in _SPLITS.items():
        images, labels = root / "images" / folder, root / "annotations" / folder
        if images.is_dir() and labels.is_dir():
            splits[split] = pair_files(images, labels)
    if not splits:
        raise wrong_layout(
            source, "images/training/ and annotations/training/, or the same with validation/"
        )
    return splits
