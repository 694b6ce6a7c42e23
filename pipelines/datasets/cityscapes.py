"""Cityscapes, 19 classes: fine annotations, and coarse ones for 19,998 more images."""

from pipelines.datasets.dataset import FileExample, Found, Taxonomy, find_splits, list_files
from pipelines.sources import open_source

_IMAGE_END = ("_leftimg8bit.png",)
_FOLDERS = {split: (f"leftImg8bit/{split}", f"gtFine/{split}") for split in ("train", "val")}
_TEST = {"test": ("leftImg8bit/test", "gtFine/test")}
_EXTRA = {"train_extra": ("leftImg8bit/train_extra", "gtCoarse/train_extra")}


def taxonomy():
    """Returns the 19 evaluated classes and their 7 categories; everything else is ignored."""
    return Taxonomy.load("cityscapes")


def find(source):
    """Lists the examples of each split that is present.

    The labels of `test` are not public: all its pixels are ignored. It serves for predictions.

    Args:
        source: where `leftImg8bit/` and `gtFine/` are, and `gtCoarse/` for `train_extra`, such as
            the zip files of the download; as for `pipelines.sources.open_source`.

    Returns:
        `Found`, with splits `train`, `val`, `test`, `train_extra`.

    Raises:
        DataError: if the layout is not the expected one, or a file lacks its partner.
    """
    source = open_source(source)
    fine = {**_FOLDERS}
    images, labels = _TEST["test"]
    test = source.find(images)
    if test and source.find(labels):
        fine.update(_TEST)
    splits = find_splits(source, fine, image_end=_IMAGE_END, label_end=("_gtfine_labelids.png",))
    if test and "test" not in splits:
        files = list_files(test / images, _IMAGE_END)
        splits["test"] = [FileExample(key, files[key], None) for key in sorted(files)]
    if source.find(_EXTRA["train_extra"][0]):
        splits |= find_splits(
            source, _EXTRA, image_end=_IMAGE_END, label_end=("_gtcoarse_labelids.png",)
        )
    return Found(taxonomy(), splits)
