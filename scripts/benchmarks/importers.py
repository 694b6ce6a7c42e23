"""Throughput of each importer of annotations, and the time to read a large file.

Images are JPEGs of one size with polygons of random stars; the same ones for each format. `find` is
the reading of the annotations, `records` the whole preparation: decoding, drawing, checking and
writing, by one thread.
"""

import json
import pathlib
import resource
import sys
import tempfile
import time

import _measuring
import cv2
import numpy as np

CLASSES = ("road", "car", "tree", "sign")


def main(argv=None):
    """Runs the benchmark and returns its exit code."""
    parser = _measuring.build_parser(__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--polygons", type=int, default=10, help="of an image; default: 10")
    parser.add_argument("--points", type=int, default=40, help="of a polygon; default: 40")
    parser.add_argument(
        "--large", type=int, default=12000, help="images of the large COCO file; default: 12000"
    )
    toy = {"images": 3, "size": (24, 32), "polygons": 2, "points": 5, "large": 5}
    return _measuring.main(parser, argv, compare=compare, measure=measure, toy=toy)


def compare(arguments):
    """Prints images a second of each importer."""
    height, width = arguments.size
    print(
        f"{arguments.images} images of {height} x {width}, {arguments.polygons} polygons of "
        f"{arguments.points} points each: images a second (CPU seconds)"
    )
    print(f"{'':<16}{'find':>10}{'records':>10}")
    for name in WRITERS:
        found = _measuring.in_new_process(measure, arguments, importer=name)
        print(f"{name:<16}{found['find']:>10.0f}{found['records']:>10.0f}", flush=True)
    found = _measuring.in_new_process(measure, arguments, importer=None)
    print(
        f"A COCO file of {found['megabytes']:.0f} MB, {arguments.large} images: read in "
        f"{found['seconds']:.1f} s, peak of the process {found['peak_megabytes']:.0f} MB"
    )


def measure(arguments):
    """Measures one importer; without a name, the reading of a large COCO file."""
    import pipelines
    from pipelines import (
        datasets,
        encoding,  # noqa: F401 - TensorFlow is imported before the clock starts.
    )

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        if arguments.importer is None:
            return measure_large(arguments, root)
        stars = write_images(arguments, root / "train")
        WRITERS[arguments.importer](root, stars, arguments)
        start = time.process_time()
        datasets.get(arguments.importer).find(root)
        middle = time.process_time()
        options = {"workers": 1, "progress": False}
        pipelines.prepare(arguments.importer, root, root / "out", **options)
        end = time.process_time()
    count = arguments.images
    return {"find": count / (middle - start), "records": count / (end - middle)}


def measure_large(arguments, root):
    """Reads a COCO file of many images, none of which is decoded."""
    from pipelines.datasets import coco

    (root / "train").mkdir()
    path = root / "train.json"
    # Written piece by piece: the peak of the process is that of the reading.
    with open(path, "w") as file:
        for key in ("images", "annotations"):
            file.write(f'{"{" if key == "images" else ","}"{key}": [')
            for i in range(arguments.large):
                (root / f"train/{i}.jpg").touch()
                content = coco_content([(f"{i}.jpg", stars_of(arguments, i))], arguments, first=i)
                file.write((", " if i else "") + json.dumps(content[key])[1:-1])
            file.write("]")
        file.write(f', "categories": {json.dumps(content["categories"])}}}')
    start = time.process_time()
    coco.find(root)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in kilobytes, macOS in bytes.
    peak /= 1e6 if sys.platform == "darwin" else 1e3
    megabytes = path.stat().st_size / 1e6
    return {"megabytes": megabytes, "seconds": seconds, "peak_megabytes": peak}


def stars_of(arguments, seed):
    """Draws random stars as list of `(class number, [[x, y], ...])`."""
    rng = np.random.default_rng(seed)
    height, width = arguments.size
    angles = np.linspace(0, 2 * np.pi, arguments.points, endpoint=False)
    stars = []
    for _ in range(arguments.polygons):
        radius = rng.uniform(0.05, 0.2, (arguments.points, 1)) * min(height, width)
        middle = rng.uniform(0.25, 0.75, 2) * (width, height)
        points = middle + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        stars.append((int(rng.integers(len(CLASSES))), points.round(2).tolist()))
    return stars


def write_images(arguments, folder):
    """Writes JPEGs; returns a list of `(name, stars)`."""
    folder.mkdir(parents=True)
    entries = []
    for i in range(arguments.images):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3)).astype("uint8")
        picture = cv2.resize(coarse, arguments.size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.jpg"), picture)
        entries.append((f"{i}.jpg", stars_of(arguments, i)))
    return entries


def coco_content(entries, arguments, first=0):
    """Creates the content of a COCO file; `first` is the first image's number."""
    height, width = arguments.size
    images, annotations = [], []
    for number, (name, stars) in enumerate(entries, first):
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, points in stars:
            ring = [value for point in points for value in point]
            annotation = {"id": len(annotations), "image_id": number, "category_id": label}
            annotations.append({**annotation, "iscrowd": 0, "segmentation": [ring]})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root, entries, arguments):
    """Writes one JSON file."""
    (root / "train.json").write_text(json.dumps(coco_content(entries, arguments)))


def write_labelme(root, entries, arguments):
    """Writes a JSON file beside each image."""
    height, width = arguments.size
    for name, stars in entries:
        shapes = [{"label": CLASSES[label], "points": points} for label, points in stars]
        content = {"shapes": shapes, "imagePath": name, "imageHeight": height, "imageWidth": width}
        (root / "train" / name.replace(".jpg", ".json")).write_text(json.dumps(content))


def write_cvat(root, entries, arguments):
    """Writes annotations.xml."""
    height, width = arguments.size
    parts = ["<annotations><meta><task><labels>"]
    parts += [f"<label><name>{name}</name></label>" for name in CLASSES]
    parts.append("</labels></task></meta>")
    for name, stars in entries:
        parts.append(f'<image name="train/{name}" width="{width}" height="{height}">')
        for label, points in stars:
            text = ";".join(f"{x},{y}" for x, y in points)
            parts.append(f'<polygon label="{CLASSES[label]}" points="{text}"></polygon>')
        parts.append("</image>")
    (root / "annotations.xml").write_text("".join([*parts, "</annotations>"]))


def write_yolo(root, entries, arguments):
    """Writes data.yaml, and a text file for each image."""
    (root / "images").mkdir()
    (root / "train").rename(root / "images/train")
    (root / "labels/train").mkdir(parents=True)
    (root / "data.yaml").write_text(f"names: [{', '.join(CLASSES)}]\n")
    for name, stars in entries:
        lines = [
            " ".join(map(str, [label, *(np.array(points) / arguments.size[::-1]).ravel()]))
            for label, points in stars
        ]
        path = root / "labels/train" / name.replace(".jpg", ".txt")
        path.write_text("\n".join(lines) + "\n")


def write_supervisely(root, entries, arguments):
    """Writes a project."""
    (root / "img").mkdir()
    (root / "train").rename(root / "img/images")
    (root / "train").mkdir()
    (root / "img/images").rename(root / "train/img")
    (root / "img").rmdir()
    (root / "train/ann").mkdir()
    classes = [{"title": name, "color": f"#00000{i}"} for i, name in enumerate(CLASSES)]
    (root / "meta.json").write_text(json.dumps({"classes": classes}))
    size = dict(zip(("height", "width"), arguments.size, strict=True))
    for name, stars in entries:
        objects = [
            {
                "classTitle": CLASSES[label],
                "geometryType": "polygon",
                "points": {"exterior": points, "interior": []},
            }
            for label, points in stars
        ]
        path = root / f"train/ann/{name}.json"
        path.write_text(json.dumps({"size": size, "objects": objects, "tags": []}))


def write_label_studio(root, entries, arguments):
    """Writes one export."""
    height, width = arguments.size
    sizes = {"original_height": height, "original_width": width}
    tasks = []
    for name, stars in entries:
        results = [
            {
                "type": "polygonlabels",
                **sizes,
                "value": {
                    "points": (100 * np.array(points) / (width, height)).tolist(),
                    "polygonlabels": [CLASSES[label]],
                },
            }
            for label, points in stars
        ]
        tasks.append({"data": {"image": f"/upload/{name}"}, "annotations": [{"result": results}]})
    (root / "export.json").write_text(json.dumps(tasks))


WRITERS = {
    "coco": write_coco,
    "cvat": write_cvat,
    "label_studio": write_label_studio,
    "labelme": write_labelme,
    "supervisely": write_supervisely,
    "yolo": write_yolo,
}

if __name__ == "__main__":
    sys.exit(main())
