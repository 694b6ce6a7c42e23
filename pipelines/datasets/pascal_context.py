"""PASCAL-Context, 59 classes, on the images of PASCAL VOC 2010."""

import dataclasses
import json
import pathlib

from kseg.json_text import parse_json
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
from pipelines.datasets.label_files import INDEX_MASK, MatVariable, Recoded, RunLengths
from pipelines.errors import DataError
from pipelines.sources import Member, fingerprint, open_source

_SPLITS = ("train", "val")
_FOLDERS = {split: (f"{split}/image", f"{split}/label") for split in _SPLITS}
_DETAIL = "trainval_merged.json"
_EXPECTED = (
    "VOC2010/JPEGImages/, and beside it SegmentationClassContext/ and "
    "ImageSets/SegmentationContext/ (derived PNGs), or trainval/ (MATLAB files) and "
    f"VOC2010/ImageSets/Main/, or {_DETAIL}; or with train/image/, train/label/, val/image/ and "
    "val/label/ (derived PNGs)"
)


def taxonomy():
    """Returns the 59 classes, in alphabetical order; other pixels are ignored."""
    return Taxonomy.load("pascal_context")


def find(source):
    """Lists the examples of each split that is present.

    There are three distributions, of which the first one found is used:

    * PNGs derived from the third, in either of two usual layouts;
    * the official annotations: MATLAB files in `trainval/`, numbered by the list of 459 classes;
    * `trainval_merged.json` of PASCAL in Detail, with the same numbers. It lacks 3 images.

    Args:
        source: where the images and annotations are; as for `pipelines.sources.open_source`.

    Returns:
        `Found`, with splits `train`, `val`.

    Raises:
        DataError: if the layout is not the expected one, or a file lacks its partner.
    """
    source = open_source(source)
    if source.find("train/image", "train/label") or source.find("val/image", "val/label"):
        return Found(taxonomy(), find_splits(source, _FOLDERS))
    voc = source.find("VOC2010/JPEGImages") or source.find("JPEGImages")
    if voc is None:
        raise wrong_layout(source, _EXPECTED)
    voc = voc / "VOC2010" if voc.has("VOC2010") else voc
    images = list_files(voc / "JPEGImages", (".jpg",))
    if voc.has("SegmentationClassContext"):
        labels = list_files(voc / "SegmentationClassContext", (".png",))
        lists, reader = voc / "ImageSets/SegmentationContext", INDEX_MASK
    elif root := source.find("trainval"):
        labels = list_files(root / "trainval", (".mat",))
        lists, reader = voc / "ImageSets/Main", _recoded(MatVariable("LabelMap"))
    elif root := source.find(_DETAIL):
        return Found(taxonomy(), _read_detail(root.file(_DETAIL), images))
    else:
        raise wrong_layout(source, _EXPECTED)
    splits = {}
    for split in _SPLITS:
        if names := lists.file(f"{split}.txt"):
            splits[split] = pair_listed(read_list(names), images, labels, names, decode=reader)
    if not splits:
        raise DataError(f"{lists} must hold train.txt, val.txt or both")
    return Found(taxonomy(), splits)


def _recoded(reader):
    """Translates the 459 classes to the numbers of the derived PNGs: 0, and 1 to 59."""
    back = {label: value for value, label in taxonomy().label_map.items()}
    classes = as_label_map(facts("pascal_context")["label_map_459"])
    return Recoded(reader, "the 459 classes", tuple(back[classes[i]] for i in range(460)))


@dataclasses.dataclass(frozen=True)
class DetailExample:
    """An image with its labels from `trainval_merged.json`.

    Attributes:
        id: str.
        image: file.
        file: the file that holds the labels of all images.
        label: str, this image's labels as JSON, for `label_files.RunLengths`.
        decode: from the bytes of `label` to an array of values.
    """

    id: str
    image: pathlib.Path | Member
    file: pathlib.Path | Member
    label: str = dataclasses.field(repr=False)
    decode: Recoded

    @property
    def fingerprint(self):
        """Names, sizes and modification times of both files, and the reader of the label."""
        return [fingerprint(self.image), fingerprint(self.file), repr(self.decode)]

    def read(self):
        """Returns the image's bytes, and its labels."""
        return self.image.read_bytes(), self.label.encode()


def _read_detail(file, images):
    """Lists the examples of both splits; reads the whole file at once."""
    decode = _recoded(RunLengths())
    splits = {split: [] for split in _SPLITS}
    try:
        content = parse_json(file.read_bytes())
        masks = {image["image_id"]: [] for image in content["images"]}
        for mask in content["annos_segmentation"]:
            masks[mask["image_id"]].append([mask["category_id"], mask["segmentation"]["counts"]])
        for image in content["images"]:
            key = image["file_name"].removesuffix(".jpg")
            if image["phase"] not in splits:
                continue
            if key not in images:
                raise DataError(f"{file} names what has no image file: {key}")
            label = json.dumps(
                {"size": [image["height"], image["width"]], "masks": masks[image["image_id"]]}
            )
            splits[image["phase"]].append(DetailExample(key, images[key], file, label, decode))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} must be the annotations of PASCAL in Detail ({error!r})") from None
    return {
        split: sorted(examples, key=lambda e: e.id)
        for split, examples in splits.items()
        if examples
    }
