"""ADE20K scene parsing, 150 classes (ADEChallengeData2016)."""

from pipelines.datasets.dataset import Taxonomy, find_splits

_FOLDERS = {
    split: (f"images/{folder}", f"annotations/{folder}")
    for split, folder in (("train", "training"), ("val", "validation"))
}


def taxonomy():
    """The 150 classes; other objects (0 in the files) are ignored."""
    return Taxonomy.load("ade20k")


def find_examples(source):
    """Lists the examples of each split that is there.

    Args:
        source: the folder with `images/training/` and `annotations/training/`, or `validation/`
            in place of `training/`; or the folder that holds it as `ADEChallengeData2016`.

    Returns:
        dict from split (`train`, `val`) to list of `FileExample`.

    Raises:
        DataError: if the layout is another, or a file lacks its partner.
    """
    return find_splits(source, "ADEChallengeData2016", _FOLDERS)
