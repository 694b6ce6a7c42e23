"""Annotation files of tiny images, in the formats of tools."""

import json

import numpy as np
import pytest

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


def pairs(numbers, scale=(1, 1)):
    """`[x, y]` pairs."""
    points = np.reshape(np.float64(numbers), (-1, 2)) / scale
    return points.tolist()


def write_yolo(folder):
    """`images/train/a.jpg`, `labels/train/a.txt`, `data.yaml`."""
    (folder / "images").mkdir(parents=True)
    (folder / "data.yaml").write_text(
        "path: ../mine\ntrain: images/train\nval: images/val\nnames:\n  0: car\n  1: tree\n"
    )
    for number, split in enumerate(("train", "val")):
        write_image(folder / f"images/{split}/a.jpg", number)
        (folder / f"labels/{split}").mkdir(parents=True)
        lines = [
            " ".join([str(label), *(repr(v) for pair in pairs(area, SIZE[::-1]) for v in pair)])
            for label, area in enumerate((CAR, TREE))
        ]
        (folder / f"labels/{split}/a.txt").write_text("\n".join(lines) + "\n")


def labelme_content(name, **more):
    """A labelme file's content."""
    shapes = [
        {"label": label, "points": pairs(area), "shape_type": "polygon", "group_id": None}
        for label, area in (("car", CAR), ("tree", TREE))
    ]
    sizes = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    return {"version": "5", "flags": {}, "shapes": shapes, "imagePath": name, **sizes, **more}


def write_labelme(folder):
    """`train/a.jpg` beside `train/a.json`."""
    for number, split in enumerate(("train", "val")):
        write_image(folder / f"{split}/a.jpg", number)
        write_json(folder / f"{split}/a.json", labelme_content("a.jpg"))


def cvat_text(images, labels=("car", "tree")):
    """annotations.xml; `images` maps attributes of an image to its shapes."""
    meta = "".join(
        f"<label><name>{name}</name><color>#0{i}0203</color><attributes></attributes></label>"
        for i, name in enumerate(labels)
    )
    body = "".join(f"<image {head}>{shapes}</image>" for head, shapes in images.items())
    head = f"<version>1.1</version><meta><task><labels>{meta}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{head}{body}</annotations>'


def cvat_polygon(label, area, depth=0):
    """A polygon of annotations.xml."""
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs(area))
    return f'<polygon label="{label}" points="{points}" z_order="{depth}"></polygon>'


def write_cvat(folder):
    """`annotations.xml`, `images/train/a.jpg`."""
    images = {}
    for number, split in enumerate(("train", "val")):
        write_image(folder / f"images/{split}/a.jpg", number)
        head = f'id="{number}" name="{split}/a.jpg" width="{SIZE[1]}" height="{SIZE[0]}"'
        images[head] = cvat_polygon("tree", TREE, 1) + cvat_polygon("car", CAR)
    (folder / "annotations.xml").write_text(cvat_text(images))


def supervisely_content(*objects):
    """An annotation of Supervisely; the default: the two polygons."""
    polygons = [
        {
            "classTitle": name,
            "geometryType": "polygon",
            "points": {"exterior": pairs(area), "interior": []},
        }
        for name, area in (("car", CAR), ("tree", TREE))
    ]
    size = {"height": SIZE[0], "width": SIZE[1]}
    return {"description": "", "tags": [], "size": size, "objects": list(objects) or polygons}


def write_supervisely(folder):
    """`meta.json`, `train/img/a.jpg`, `train/ann/a.jpg.json`."""
    classes = [
        {"title": name, "shape": "polygon", "color": f"#0{i}0203"}
        for i, name in enumerate(("car", "tree"))
    ]
    write_json(folder / "meta.json", {"classes": classes, "tags": []})
    for number, split in enumerate(("train", "val")):
        write_image(folder / f"{split}/img/a.jpg", number)
        write_json(folder / f"{split}/ann/a.jpg.json", supervisely_content())


def label_studio_task(name, **more):
    """A task with the two polygons, in percent."""
    results = [
        {
            "type": "polygonlabels",
            "original_width": SIZE[1],
            "original_height": SIZE[0],
            "image_rotation": 0,
            "value": {"points": pairs(area, np.divide(SIZE[::-1], 100)), "polygonlabels": [label]},
        }
        for label, area in (("car", CAR), ("tree", TREE))
    ]
    annotations = [{"id": 1, "was_cancelled": False, "result": results}]
    return {"id": 1, "data": {"image": name}, "annotations": annotations, **more}


def write_label_studio(folder):
    """An export of uploaded images, whose names got a prefix."""
    names = {"train/a.jpg": "a.jpg", "val/b.jpg": "0123abcd-b.jpg"}
    for number, name in enumerate(names):
        write_image(folder / name, number)
    tasks = [label_studio_task(f"/data/upload/1/{name}") for name in names.values()]
    write_json(folder / "export.json", tasks)


def write_pascal_voc(folder, colors=False):
    """Masks of the background, car (7), person (15) and the border (255), or of their colors."""
    values = np.full(SIZE, 255, "uint8")
    values[:, :4], values[:, 4:8], values[:, 8:12] = 0, 7, 15
    table = np.zeros((256, 3), "uint8")
    table[[7, 15, 255]] = (128, 128, 128), (192, 128, 128), (224, 224, 192)
    root = folder / "VOC2012"
    for number, split in enumerate(("train", "val")):
        write_image(root / f"JPEGImages/{split}.jpg", number)
        mask = root / f"SegmentationClass/{split}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(encode(table[values] if colors else values))
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(f"{split}\n")


def write_huggingface(folder):
    """Parquet files of two splits, and id2label.json; car is 1, tree 2."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, split in enumerate(("train", "val")):
        path = folder / f"data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table_of_images(number), path, row_group_size=2)
    write_json(folder / "id2label.json", {"0": "ground", "1": "car", "2": "tree"})


def table_of_images(seed=0, rows=3):
    """Columns as `datasets.Image` writes them: noise images, and the labels of `expected`."""
    arrow = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(seed)
    images = [encode(rng.integers(0, 256, (*SIZE, 3)).astype("uint8")) for _ in range(rows)]
    labels = [encode(np.roll(expected(), i, axis=0).astype("uint8")) for i in range(rows)]
    cells = [[{"bytes": c, "path": "x.png"} for c in column] for column in (images, labels)]
    return arrow.table({"image": cells[0], "annotation": cells[1]})


def write_joined(folder):
    """sources.json, which joins a COCO and a YOLO source."""
    root = folder.parent if folder.suffix else folder
    write_coco(root / "drone")
    write_yolo(root / "street")
    sources = [
        {"dataset": "coco", "source": "drone", "name": "drone"},
        {"dataset": "yolo", "source": "street", "class_map": {"car": "tree", "tree": "car"}},
    ]
    write_json(root / "sources.json", {"sources": sources})


def write_json(path, content):
    """Writes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
