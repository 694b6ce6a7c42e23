"""Annotation files of tiny images, in the formats of tools."""

import json

import numpy as np

from tests.pipelines.tiny_data import encode

SIZE = (12, 16)
CAR = [2, 3, 9, 3, 9, 8, 2, 8]  # Rows 3 to 7, columns 2 to 8.
TREE = [6, 5, 14, 5, 14, 10, 6, 10]  # Rows 5 to 9, columns 6 to 13.


def write_image(path, number=0, size=SIZE):
    """Writes a noise image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype("uint8")
    path.write_bytes(encode(picture, path.suffix))


def expected(unlabeled=0, car=1, tree=2, grown=0):
    """The labels of `CAR` under `TREE`; `grown`: pixels that edges add on the right and below."""
    labels = np.full(SIZE, unlabeled)
    labels[3 : 8 + grown, 2 : 9 + grown] = car
    labels[5 : 10 + grown, 6 : 14 + grown] = tree
    return labels


def coco_content(names, areas=(CAR, TREE), **more):
    """A COCO file's content: each image has the areas, of the categories 3 and 7."""
    images, annotations = [], []
    for number, name in enumerate(names):
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for category, area in zip((3, 7), areas, strict=False):
            annotation = {"id": len(annotations), "image_id": number, "category_id": category}
            segmentation = area if isinstance(area, dict) else [area]
            annotations.append({**annotation, "segmentation": segmentation, "iscrowd": 0})
    categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "tree"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return {**content, **more}


def write_coco(folder):
    """`annotations/instances_<split>2017.json` and `<split>2017/`."""
    for number, split in enumerate(("train", "val")):
        write_image(folder / f"{split}2017/{split}.jpg", number)
        write_json(
            folder / f"annotations/instances_{split}2017.json", coco_content([f"{split}.jpg"])
        )


def write_json(path, content):
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
