"""Preparation of records from a dataset's files, or from computed scenes."""

import contextlib
import os
import sys
import unicodedata

from kseg.errors import option
from kseg.progress import Progress
from pipelines import data_report, datasets, paths, rasters, records, tiles
from pipelines.datasets import tfds_source
from pipelines.datasets.class_map import ClassMap, relabel
from pipelines.datasets.options import own_options
from pipelines.errors import DataError
from pipelines.manifest import exists, read_manifest
from pipelines.pictures import check_range


def prepare(
    name,
    source=None,
    output=None,
    *,
    image_format="original",
    quality=95,
    value_range=None,
    turned_masks=None,
    channels=None,
    num_shards=None,
    workers=None,
    overwrite=False,
    progress=True,
    distribute=None,
    skip=(),
    class_map=None,
    tile=None,
    tile_overlap=0,
    split_tiles=False,
    **options,
):
    """Writes a data set as records, with a report, unless that has already been done.

    Args:
        name: str, one of `pipelines.datasets.DATASETS`.
        source: the download, as for `pipelines.sources.open_source`: a folder, an archive, or a
            list of them; or `tfds://<name>`, see `datasets.tfds_source`; None for `synthetic`.
        output: folder of the records; default: `data/<name>`.
        image_format, quality, value_range, turned_masks, channels, num_shards, workers, overwrite,
            progress, distribute: as for `pipelines.records.write`.
        skip: list of str, ids of examples to leave out, such as those with broken files; of images,
            where these are cut into tiles.
        class_map: file or dict that renames, merges and drops classes, see
            `pipelines.datasets.class_map`; None leaves the classes unchanged.
        tile: `(height, width)` in pixels; large images of the data set `folder` are read in windows
            and stored as tiles of that extent, see `pipelines.tiles`; None: each image is read and
            stored as a whole.
        tile_overlap: int, pixels that neighboring tiles share.
        split_tiles: bool, the ratios of `split` divide each image from top to bottom, instead of
            the images.
        **options: options of the data set's `find`, or `data_dir` of TensorFlow Datasets.

    Returns:
        `pipelines.manifest.Manifest`.

    Raises:
        DataError: if the name is unknown, the source has an unexpected layout, files are
            unusable, or the output holds other data.
        OSError, tf.errors.OpError: if the output cannot be written; where possible this is detected
            before the work begins.
    """
    dataset = datasets.get(name)
    if source is None and name in datasets.FILE_DATASETS:
        raise DataError(f"{name!r} is made from files. Give its download: a folder or an archive")
    output = output or f"data/{name}"
    paths.check_folder(output)
    mapping = ClassMap(class_map)
    if channels is not None and name == "synthetic":
        raise DataError(f"The scenes are 8-bit RGB. Leave out {option('channels')}")
    ratios = _check_tiles(name, tile, tile_overlap, split_tiles, options)
    check_range(value_range)
    with Progress("looking for images and labels", shown=progress):
        looking = {**options, "split": {"all": 1.0}} if ratios else options
        if tile is None:
            found = _find(dataset, name, source, looking, mapping, channels)
        else:
            with rasters.reading():
                looking = {**looking, "tile": tile}
                found = _find(dataset, name, source, looking, mapping, channels)
    if progress:
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
    splits = _leave_out(found.splits, skip)
    reading = contextlib.nullcontext()
    if tile is not None:
        with rasters.reading():
            pixels = {"value_range": value_range, "channels": channels}
            splits = tiles.cut(splits, tile, tile_overlap, ratios=ratios, **pixels)
            workers, cache = tiles.bound_memory(splits, workers or records.available_cores())
        reading = rasters.reading(cache)
    if mapping.given:
        options["class_map"] = mapping.targets
    if name in datasets.IMPORTERS:
        options["notes"] = list(found.notes)
    if skip:
        options["skip"] = sorted(skip)
    if image_format != "original":
        options["image_format"] = f"{image_format}, quality {quality}"
    for key, value in (
        ("range", value_range),
        ("turned_masks", turned_masks),
        ("channels", channels),
        ("tile", tile),
        ("tile_overlap", tile_overlap or None),
        ("split_tiles", split_tiles or None),
    ):
        if value is not None:
            options[key] = value
    with reading:
        return records.write(
            output,
            name,
            found.taxonomy,
            splits,
            options={key: value for key, value in options.items() if key != "data_dir"},
            image_format=image_format,
            quality=quality,
            value_range=value_range,
            turned_masks=turned_masks,
            channels=channels,
            num_shards=num_shards,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
            describe=data_report.write,
            distribute=distribute,
        )


def _check_tiles(name, tile, overlap, split_tiles, options):
    """Checks the options of tiles; returns the ratios that divide each image, or None."""
    if tile is None:
        for key, value in (("tile_overlap", overlap), ("split_tiles", split_tiles)):
            if value:
                raise DataError(f"{option(key)} goes with {option('tile')}. Give it, or neither")
        return None
    if name != "folder":
        raise DataError(
            f"{option('tile')} is for the data set 'folder': images and masks in files. Received: "
            f"{name!r}"
        )
    ratios = (options.get("split") or {}) if split_tiles else None
    tiles.check(tile, overlap, ratios)
    return ratios


def _find(dataset, name, source, options, mapping, channels=None):
    """Calls the data set's `find`, or that of TensorFlow Datasets, and maps the classes."""
    if channels is not None and name == "folder":
        options = {**options, "channels": channels}
    if name in datasets.IMPORTERS:
        return _call(dataset.find, {**options, "class_map": mapping}, source)
    found = _find_unmapped(dataset, name, source, options)
    return relabel(found, mapping) if mapping.given else found


def _find_unmapped(dataset, name, source, options):
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source or ())
    if any(str(path).startswith(tfds_source.SCHEME) for path in sources):
        if len(sources) > 1:
            raise DataError(f"A source from tfds:// must be the only source. Received: {sources}")
        return _call(tfds_source.find, options, name, str(sources[0]))
    if options.get("data_dir") is not None:
        raise DataError(f"{option('data_dir')} is for tfds:// sources. Leave it out")
    return _call(dataset.find, options, source)


def _call(find, options, *positional):
    """Calls a `find` function; raises a DataError for options that it does not have."""
    known = own_options(find, len(positional))
    if unknown := sorted(set(options) - set(known)):
        raise DataError(
            f"This data set has no option {option(unknown[0])}. Its own options: "
            f"{', '.join(map(option, known)) or 'none'}"
        )
    return find(*positional, **options)


def _leave_out(splits, skip):
    """Returns the splits without the skipped examples."""
    skip = {unicodedata.normalize("NFC", name) for name in skip}
    unknown = skip - {example.id for examples in splits.values() for example in examples}
    if unknown:
        names = ", ".join(sorted(unknown)[:3])
        raise DataError(f"{option('skip')} must name examples. There is no {names}")
    return {
        split: [example for example in examples if example.id not in skip]
        for split, examples in splits.items()
    }


def prepare_once(name, folder, **options):
    """Prepares a data set that needs no source, unless the folder already holds one.

    Args:
        name: str, `synthetic`.
        folder: folder of the records. An existing data set is used as it is, however it was made.
        **options: as for `prepare`.

    Returns:
        `pipelines.manifest.Manifest`.

    Raises:
        DataError: as for `prepare`, or if the existing data set is damaged.
    """
    if exists(folder):
        return read_manifest(folder)
    return prepare(name, output=folder, **options)
