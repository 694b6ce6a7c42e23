"""ADE20K scene parsing, 150 classes (ADEChallengeData2016)."""

from pipelines.datasets.dataset import Found, Taxonomy, find_splits

_FOLDERS = {
    split: (f"images/{folder}", f"annotations/{folder}")
    for split, folder in (("train", "training"), ("val", "validation"))
}


def taxonomy():
    """Returns the 150 classes; other objects (0 in the files) are ignored."""
    return Taxonomy.load("ade20k")


def find(source):
    """Lists the examples of each split that is present.

    Args:
        source: where `images/training/` and `annotations/training/`, or `validation/` in place of
            `training/`, are; as for `pipelines.sources.open_source`.

    Returns:
        `Found`, with splits `train`, `val`.

    Raises:
        DataError: if the layout is not the expected one, or a file lacks its partner.
    """
    return Found(taxonomy(), find_splits(source, _FOLDERS))
