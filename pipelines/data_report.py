"""Reports on prepared data, to inspect before training.

    <folder>/report.json     images, sizes, pixels and images of each class, duplicates
             report.png      random images with their labels laid over them, and a legend

Two images are duplicates if all their pixels are equal after decoding, however their files were
compressed.
"""

import collections
import json
import os

import cv2
import numpy as np

from kseg import display, waiting
from kseg.json_text import parse_json
from kseg.pixel_format import PixelFormat, to_picture
from kseg.progress import Progress
from pipelines import datasets, paths
from pipelines.datasets.dataset import IGNORE_LABEL, shorten
from pipelines.errors import DataError
from pipelines.examples import digest

JSON_FILE, PICTURE_FILE = "report.json", "report.png"
_SAMPLES = 4  # Images of each split in the picture.
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _PAPER, _STRIPES = (35, 35, 40), (255, 255, 255), ((225, 225, 225), (165, 165, 165))
_TILE = (240, 320)
_GAP = 8
_LEGEND_COLUMNS = 5
_NAME_COLUMNS = 30
_NAMED_SHARE = 0.015  # Regions below this share of the image get no name written on them.


def write(manifest, contents=None, *, seed=0):
    """Writes the report of a prepared data set beside its manifest.

    Args:
        manifest: `pipelines.manifest.Manifest`.
        contents: dict from split to a list of `[id, height, width, digest]`, one for each image;
            default: all images are read again.
        seed: int, chooses the images of the picture.

    Returns:
        dict, as JSON holds it.

    Raises:
        DataError: if the data is damaged.
        OSError: if the folder cannot be written.
    """
    if contents is None:
        contents = {split: _read_contents(manifest, split) for split in manifest.splits}
    report = summarize(manifest, contents)
    with Progress(f"drawing {PICTURE_FILE}"):
        picture = draw_samples(manifest, seed=seed)
    png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    paths.write_bytes(os.path.join(manifest.folder, PICTURE_FILE), png)
    text = json.dumps(report, indent=1) + "\n"
    paths.write_bytes(os.path.join(manifest.folder, JSON_FILE), text.encode())
    return report


def read(manifest):
    """Reads the report of a prepared data set; writes it if it is missing or describes other data.

    Args:
        manifest: `pipelines.manifest.Manifest`.

    Returns:
        dict, as `write` returns it.

    Raises:
        DataError, OSError: as `write`.
    """
    try:
        report = parse_json(paths.read_bytes(os.path.join(manifest.folder, JSON_FILE)))
        if report["fingerprint"] == manifest.fingerprint:
            return report
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return write(manifest)


def summarize(manifest, contents):
    """Summarizes images, sizes, classes and duplicates.

    Args:
        manifest: `pipelines.manifest.Manifest`.
        contents: as for `write`.

    Returns:
        dict that JSON can hold:

        * `dataset`, `fingerprint`, `classes` (names); `pixels`, as of the manifest, if the images
          are not 8-bit RGB;
        * `tiles`, if images were cut into tiles: for each split `images`, `tiles` and `left_out`
          (those in which all pixels are ignored); the manifest's `options.tiles` says where they
          are;
        * `notes`: what was assumed as annotations were drawn, and how overlaps were decided;
        * `splits`: for each split `images`, `published_images` (None where that is not known),
          `shards`, `bytes`, `sizes` (list of `[height, width, images]`, most frequent first),
          `pixels` and `class_images` (for each class), `ignored_pixels`, `ignored_share`,
          `absent_classes` (names);
        * `absent_classes`: names of the classes that no split contains;
        * `duplicates_between_splits`, `duplicates_within_splits`: lists of lists of
          `<split>/<id>`, of images that are equal.
    """
    names = manifest.class_names
    published = _published_images(manifest.dataset)
    splits = {}
    for split, part in manifest.splits.items():
        sizes = collections.Counter((height, width) for _, height, width, _ in contents[split])
        splits[split] = {
            "images": part.num_images,
            "published_images": published.get(split),
            "shards": len(part.shards),
            "bytes": sum(shard.bytes for shard in part.shards),
            "sizes": [
                [*size, count]
                for size, count in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
            ],
            "pixels": dict(zip(names, part.pixels, strict=False)),
            "class_images": dict(zip(names, part.images, strict=False)),
            "ignored_pixels": part.pixels[-1],
            "ignored_share": part.pixels[-1] / max(1, sum(part.pixels)),
            "absent_classes": _absent(names, [part]),
        }
    owners = collections.defaultdict(list)
    for split, images in contents.items():
        for key, _, _, code in images:
            owners[code].append((split, key))
    equal = [copies for copies in owners.values() if len(copies) > 1]
    between, within = [], []
    for copies in equal:
        (between if len({split for split, _ in copies}) > 1 else within).append(copies)
    return {
        "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint,
        **({} if manifest.pixels is None else {"pixels": manifest.pixels}),
        "classes": names,
        **_count_tiles(manifest),
        "notes": manifest.options.get("notes", []),
        "splits": splits,
        "absent_classes": _absent(names, manifest.splits.values()),
        "duplicates_between_splits": [["/".join(p) for p in copies] for copies in between],
        "duplicates_within_splits": [["/".join(p) for p in copies] for copies in within],
    }


def _count_tiles(manifest):
    found = {
        split: {
            "images": len(images),
            "tiles": sum(len(image["tiles"]) for image in images),
            "left_out": sum(image["left_out"] for image in images),
        }
        for split, images in manifest.options.get("tiles", {}).items()
    }
    return {"tiles": found} if found else {}


def as_text(report):
    """Formats a report as text.

    Args:
        report: dict, as `write` returns it.

    Returns:
        str, several lines.
    """
    splits, names = report["splits"], report["classes"]
    lines = _pixels_text(report.get("pixels"))
    lines += [f"{'split':<12}{'images':>8}{'shards':>8}{'MB':>9}  size"]
    for name, split in splits.items():
        lines.append(
            f"{name:<12}{split['images']:>8}{split['shards']:>8}{split['bytes'] / 1e6:>9.1f}  "
            f"{_sizes_text(split['sizes'])}"
        )
    width = display.name_columns([*names, "% of pixels (images)"]) + 1
    lines += ["", f"{'% of pixels (images)':<{width}}" + "".join(f"{n:>18}" for n in splits)]
    for name in names:
        cells = ""
        for split in splits.values():
            total = max(1, sum(split["pixels"].values()) + split["ignored_pixels"])
            cells += f"{100 * split['pixels'][name] / total:>9.2f} "
            cells += f"{'(' + str(split['class_images'][name]) + ')':>8}"
        lines.append(f"{display.fit(name, width)}{cells}")
    shares = "".join(f"{100 * split['ignored_share']:>9.2f}{'':>9}" for split in splits.values())
    lines += [f"{'(ignored)':<{width}}{shares.rstrip()}", ""]
    for name, tiles in report.get("tiles", {}).items():
        lines.append(
            f"{name}: {tiles['tiles']} tiles of {tiles['images']} images; "
            f"{tiles['left_out']} more, in which all is ignored, are left out"
        )
    lines += [f"note: {note}" for note in report.get("notes", [])]
    for name, split in splits.items():
        if split["published_images"] not in (None, split["images"]):
            lines.append(
                f"note: {name} has {split['images']} images, the published split has "
                f"{split['published_images']}"
            )
        if not sum(split["pixels"].values()):
            lines.append(
                f"WARNING: all pixels of {name} are ignored: it can be neither trained on nor "
                "scored"
            )
            continue
        missing = [c for c in split["absent_classes"] if c not in report["absent_classes"]]
        if missing:
            # The network cannot learn what other splits are scored on.
            kind = "WARNING" if name == "train" else "note"
            lines.append(f"{kind}: {_classes(missing)} in {name}")
    if report["absent_classes"]:
        lines.append(f"WARNING: {_classes(report['absent_classes'])} in any split")
    for kind, head in (
        ("between", "WARNING: equal images in two splits"),
        ("within", "note: equal images in one split"),
    ):
        groups = report[f"duplicates_{kind}_splits"]
        if groups:
            lines.append(f"{head}, {len(groups)} times: {shorten([' = '.join(p) for p in groups])}")
    if not report["duplicates_between_splits"]:
        lines.append("No image is in two splits.")
    return "\n".join(lines)


def _pixels_text(values):
    """Returns lines on channels, range and statistics of images that are not 8-bit RGB."""
    pixels = PixelFormat.from_dict(values)
    if pixels is None:
        return []
    lines = [f"images: {pixels}"]
    for number in range(pixels.channels):
        of = (pixels.minimum, pixels.maximum, pixels.mean, pixels.std)
        low, high, mean, std = (f"{values[number]:.5g}" for values in of)
        lines.append(f"  channel {number}: {low} to {high}, mean {mean}, std {std}")
    return [*lines, ""]


def draw_samples(manifest, *, seed=0):
    """Draws random images of each split with their labels laid over them.

    Args:
        manifest: `pipelines.manifest.Manifest`.
        seed: int, chooses the images.

    Returns:
        uint8 `(height, width, 3)`, RGB. Ignored pixels are striped.
    """
    from pipelines import loader  # Imported late: it imports TensorFlow.

    rng = np.random.default_rng(seed)
    rows, seen = [], set()
    for split, part in manifest.splits.items():
        count = min(_SAMPLES, part.num_images)
        numbers = np.sort(rng.choice(part.num_images, count, replace=False))
        rows.append(_heading(f"{manifest.dataset}: {split}, {count} of {part.num_images} images"))
        tiles = []
        examples = loader.evaluation_dataset(manifest.folder, split, numbers=numbers)
        for example in waiting.each_batch(examples):
            image, labels = (example[name][0].numpy() for name in ("image", "label"))
            image = to_picture(image, manifest.pixel_format)
            seen.update(np.unique(labels).tolist())
            name = example["id"][0].numpy().decode("utf-8", "replace")
            tiles.append(_draw_pair(image, labels, name, manifest))
        for start in range(0, len(tiles), 2):
            pair = tiles[start : start + 2]
            pair += [np.full_like(pair[0], 255)] * (2 - len(pair))
            rows.append(np.concatenate(pair, axis=1))
    rows.append(_draw_legend(manifest, seen))
    width = max(row.shape[1] for row in rows)
    rows = [
        cv2.copyMakeBorder(row, 0, 0, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=_PAPER)
        for row in rows
    ]
    return np.concatenate(rows)


def _read_contents(manifest, split):
    """Reads all images of a split again."""
    from pipelines import loader

    contents = []
    with Progress(f"reading {split}", manifest.split(split).num_images) as progress:
        for example in waiting.each_batch(loader.evaluation_dataset(manifest.folder, split)):
            name = example["id"][0].numpy().decode("utf-8", "replace")
            image = example["image"][0].numpy()
            contents.append([name, *image.shape[:2], digest(image)])
            progress.advance()
    return contents


def _published_images(dataset):
    try:
        return datasets.describe(dataset).get("split_images", {})
    except DataError:
        return {}


def _absent(names, splits):
    counts = np.sum([split.images for split in splits], axis=0)
    return [name for name, count in zip(names, counts, strict=False) if not count]


def _classes(names):
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shorten(names, 8)}) {verb} not"
    )


def _sizes_text(sizes):
    """Formats sizes as `360x480`, or as a range if there are several."""
    if len(sizes) == 1:
        return f"{sizes[0][0]}x{sizes[0][1]}"
    total = sum(count for _, _, count in sizes)
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    (height, width, count), smallest, largest = sizes[0], by_area[0], by_area[-1]
    return (
        f"various: {len(sizes)} sizes from {smallest[0]}x{smallest[1]} to {largest[0]}x"
        f"{largest[1]}, {100 * count / total:.0f} % {height}x{width}"
    )


def _heading(text):
    bar = np.full((34, 4 * _TILE[1] + 5 * _GAP, 3), _INK, "uint8")
    _put(bar, text, (_GAP, 23), 0.6, _PAPER)
    return bar


def _put(picture, text, position, scale, color):
    cv2.putText(picture, display.drawable(text), position, _FONT, scale, color, 1, cv2.LINE_AA)


def _draw_pair(image, labels, name, manifest):
    """Draws an image and, beside it, an overlay of its labels with the names of large regions."""
    scale = min(_TILE[0] / image.shape[0], _TILE[1] / image.shape[1])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    tile = np.full((_TILE[0] + 2 * _GAP + 14, 2 * (_TILE[1] + _GAP) + _GAP // 2, 3), 255, "uint8")
    for column, picture in enumerate((image, _overlay(image, labels, manifest))):
        left = _GAP + column * (_TILE[1] + _GAP)
        tile[_GAP : _GAP + size[1], left : left + size[0]] = picture
    share = 100 * np.mean(labels == IGNORE_LABEL)
    text = f"{name[-60:]}   {share:.0f} % ignored"
    _put(tile, text, (_GAP, _GAP + size[1] + 13), 0.38, _INK)
    return tile


def _overlay(image, labels, manifest):
    palette = np.zeros((256, 3), "uint8")
    palette[: manifest.num_classes] = manifest.palette
    mixed = cv2.addWeighted(image, 0.4, palette[labels], 0.6, 0)
    mixed[labels == IGNORE_LABEL] = _stripes(*labels.shape)[labels == IGNORE_LABEL]
    for label in np.unique(labels[labels != IGNORE_LABEL]):
        # The border counts as outside, so that names stay inside the picture.
        mask = cv2.copyMakeBorder(
            (labels == label).astype("uint8"), 1, 1, 1, 1, cv2.BORDER_CONSTANT
        )
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        if stats[largest, cv2.CC_STAT_AREA] < _NAMED_SHARE * labels.size:
            continue
        distance = cv2.distanceTransform((parts == largest).astype("uint8"), cv2.DIST_L2, 3)
        row, column = np.unravel_index(np.argmax(distance), distance.shape)
        text = display.fit(manifest.class_names[label], _NAME_COLUMNS).rstrip()
        text = display.drawable(text)
        width = cv2.getTextSize(text, _FONT, 0.36, 1)[0][0]
        left = int(np.clip(column - width // 2, 3, max(3, labels.shape[1] - width - 3)))
        base = int(np.clip(row + 4, 12, max(12, labels.shape[0] - 4)))
        cv2.rectangle(mixed, (left - 3, base - 11), (left + width + 3, base + 3), _INK, -1)
        _put(mixed, text, (left, base), 0.36, _PAPER)
    return mixed


def _stripes(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.array(_STRIPES, "uint8")[(rows + columns) // 4 % 2]


def _draw_legend(manifest, seen):
    """Draws the colors and names of the classes that occur."""
    labels = [*sorted(seen - {IGNORE_LABEL}), IGNORE_LABEL]
    rows = -(-len(labels) // _LEGEND_COLUMNS)
    width = 4 * _TILE[1] + 5 * _GAP
    legend = np.full((24 * rows + 2 * _GAP, width, 3), 255, "uint8")
    for index, label in enumerate(labels):
        top = _GAP + 24 * (index % rows)
        left = _GAP + index // rows * (width // _LEGEND_COLUMNS)
        box = legend[top + 4 : top + 20, left : left + 28]
        if label == IGNORE_LABEL:
            box[:] = _stripes(*box.shape[:2])
        else:
            box[:] = manifest.palette[label]
        cv2.rectangle(legend, (left, top + 4), (left + 28, top + 20), (120, 120, 120), 1)
        name = "(ignored)" if label == IGNORE_LABEL else f"{label} {manifest.class_names[label]}"
        _put(legend, display.fit(name, _NAME_COLUMNS), (left + 36, top + 17), 0.42, _INK)
    return legend
