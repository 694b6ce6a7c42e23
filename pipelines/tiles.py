"""Tiles of images that do not fit into memory, each of which becomes a record.

Image and mask are read in windows, by rasterio, so memory does not grow with their size:

* Tiles begin at multiples of their extent less the overlap. The last one of a row or column is
  moved inward, so all have their full extent, unless the image is smaller.
* In `val` and `test` tiles share pixels where they overlap, but not labels: each pixel has its
  label in the tile whose center is nearest, along rows and along columns, and is ignored in the
  others. So it is counted once, and seen with its surroundings.
* Pixels without data, in the image or in its mask, are ignored. Tiles of which all pixels are
  ignored are left out.
* An image is in one split, with all its tiles, or, with `ratios`, is divided from top to bottom.
"""

import collections
import dataclasses
import itertools
import pathlib

import numpy as np

from kseg.errors import option
from pipelines import rasters
from pipelines.datasets.class_map import RelabeledExample
from pipelines.datasets.dataset import IGNORE_LABEL, FileExample
from pipelines.datasets.label_files import PictureReader
from pipelines.datasets.large_masks import MaskRaster, single_value
from pipelines.datasets.thread_cache import cached_by_thread
from pipelines.errors import DataError
from pipelines.sources import fingerprint

EVALUATED = ("val", "test")  # Splits in which each pixel has its label in one tile.
_KINDS = ("TIFF", "PNG")
_SHOWN = 3  # Problems in a message.
_CACHE = 128 << 20, 1 << 30  # Fewest and most bytes of decoded parts of files.


@dataclasses.dataclass(frozen=True)
class TileExample:
    """A part of an image file and of its mask file.

    Attributes:
        id: str, that of the image, and first row and column: `mosaic_y01024_x02048`.
        parent: `pipelines.datasets.dataset.FileExample`, the files.
        size: `(height, width)` of the whole image.
        window: `(first row, row after the last, first column, column after the last)`.
        owned: likewise, the part that keeps its labels; the others are ignored.
    """

    id: str
    parent: FileExample
    size: tuple
    window: tuple
    owned: tuple

    @property
    def image(self):
        """Path of the image file."""
        return self.parent.image

    @property
    def label(self):
        """Path of the mask file."""
        return self.parent.label

    @property
    def fingerprint(self):
        """Names, sizes and modification times of both files, the reader and the part."""
        files = [fingerprint(self.image), fingerprint(self.label)]
        return [*files, repr(self.parent.decode), [*self.window, *self.owned]]

    def value_type(self, channels):
        """Returns the type of the values of the image file, as str.

        Args:
            channels: as for `read_image`.

        Raises:
            DataError: if the file cannot be read.
        """
        with _connect(self.image) as source:  # Not cached: the calling thread outlives the work.
            return rasters.Raster(source, channels=channels).dtype

    def read_image(self, value_range=None, channels=None):
        """Reads the part of the image.

        Args:
            value_range: as for `pipelines.rasters.open_raster`.
            channels: as for `pipelines.rasters.Raster`.

        Returns:
            `(pixels, empty, dtype)`: as of `pipelines.rasters.Raster.read`; bool `(height, width)`,
            the pixels without data, or None; str, the type of the file's values.

        Raises:
            DataError: if the file is damaged or has values that are not read.
        """
        range_ = None if value_range is None else tuple(value_range)
        raster = _open_image(self.image, range_, channels)
        pixels = raster.read(*self.window)
        return pixels, raster.find_empty(*self.window), raster.dtype

    def read_labels(self, taxonomy):
        """Reads the part of the mask.

        Args:
            taxonomy: `pipelines.datasets.dataset.Taxonomy`.

        Returns:
            uint8 `(height, width)`, labels 0..N-1, 255 = ignored.

        Raises:
            DataError: if the file is damaged or has values that are not read.
        """
        mask, unlabeled = _open_mask(self.label).read(*self.window)
        if unlabeled is not None and unlabeled.all():
            return np.full(unlabeled.shape, IGNORE_LABEL, "uint8")
        found = taxonomy.map_labels(self.parent.decode.read(mask))
        if unlabeled is not None:
            found[unlabeled] = IGNORE_LABEL
        top, bottom, left, right = self.owned
        labels = np.full_like(found, IGNORE_LABEL)
        kept = np.s_[
            top - self.window[0] : bottom - self.window[0],
            left - self.window[2] : right - self.window[2],
        ]
        labels[kept] = found[kept]
        return labels


@cached_by_thread(2)
def _open_image(path, value_range, channels):
    return rasters.Raster(_connect(path), value_range, channels=channels)


@cached_by_thread(2)
def _open_mask(path):
    return MaskRaster(path)


def _connect(path):
    return rasters.connect(path, _KINDS, "an image in tiles")


def check(tile, overlap, ratios=None):
    """Checks the options of tiles.

    Args:
        tile: `(height, width)`, pixels.
        overlap: int, pixels that neighbors share.
        ratios: dict from split to its share of each image, or None.

    Raises:
        DataError: if they cannot be used.
        UserError: if rasterio is missing.
    """
    if not 0 <= overlap < min(tile):
        raise DataError(
            f"{option('tile_overlap')} must be 0 or more and less than {option('tile')}. Received: "
            f"{overlap} and {tile[0]} x {tile[1]}"
        )
    if ratios is not None and not (
        isinstance(ratios, dict)
        and ratios
        and all(isinstance(r, (int, float)) and 0 < r <= 1 for r in ratios.values())
        and abs(sum(ratios.values()) - 1) < 1e-6
    ):
        raise DataError(
            f"{option('split_tiles', True)} divides each image by ratios that sum to 1: give "
            f"{option('split', {'train': 0.8, 'val': 0.2})}. Received: {ratios}"
        )
    rasters.check_installed()


def cut(splits, tile, overlap=0, *, ratios=None, value_range=None, channels=None):
    """Divides the images of a data set into tiles; reads no pixels but those of an opacity.

    Args:
        splits: dict from split to list of `FileExample` or of `RelabeledExample` of one; with
            `ratios` there is one split, of all images.
        tile, overlap: as for `check`.
        ratios: dict from split to its share of the rows of each image, from top to bottom; no pixel
            is in two of them. None: an image is in its own split.
        value_range, channels: as for `TileExample.read_image`.

    Returns:
        dict from split to list of `TileExample` or of `RelabeledExample` of one.

    Raises:
        DataError: if image and mask do not fit each other, or cannot be read in parts.
    """
    found = {split: [] for split in (ratios or splits)}
    problems = []
    for split, examples in splits.items():
        for example in examples:
            try:
                size = _check_pair(_files(example), value_range, channels)
                for name, first, last in _regions(split, size[0], ratios):
                    found[name] += _tiles(example, size, (first, last), tile, overlap, name)
            except DataError as error:
                problems.append(str(error))
    if problems:
        problems = sorted(set(problems))
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"Unusable files: {'; '.join(problems[:_SHOWN])}{more}. Fix them or leave them out "
            f"({option('skip')}), and run again"
        )
    return found


def _files(example):
    while isinstance(example, RelabeledExample):
        example = example.example
    if not isinstance(example, FileExample) or not isinstance(example.decode, PictureReader):
        raise DataError(
            f"{example.id}: {option('tile')} needs masks that are pictures. Leave it out"
        )
    for file in (example.image, example.label):
        if not isinstance(file, pathlib.Path):
            raise DataError(f"{file}: {option('tile')} reads files on disk. Unpack the archive")
    return example


def _check_pair(files, value_range, channels):
    """`(height, width)` of an image and its mask; raises a DataError unless they fit."""
    name = files.image
    try:
        with _connect(files.image) as image:
            # Examines an opacity, if there is one, before several threads read the file.
            _ = rasters.Raster(image, value_range, channels=channels).has_nodata
            name = files.label
            raster = MaskRaster(files.label)
            with raster.source as mask:
                _check_size(image, mask)
                _check_place(image, mask)
                _check_nodata(raster.nodata, files.decode)
            return image.height, image.width
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _check_size(image, mask):
    sizes = [(source.height, source.width) for source in (image, mask)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"a label must have the size of its image, {sizes[0]} (height, width), and has "
            f"{sizes[1]}"
        )


def _check_place(image, mask):
    """Raises a DataError if both files say where they are, and differ."""
    if image.crs and mask.crs and image.crs != mask.crs:
        raise DataError(
            f"a label must have the coordinate system of its image, {image.crs}, and has "
            f"{mask.crs}. Warp it onto the image (gdalwarp)"
        )
    if image.transform.is_identity or mask.transform.is_identity:
        return
    # Corners of the mask, in pixels of the mask and of the image.
    corners = np.array([[0, 0, 1], [image.width, 0, 1], [0, image.height, 1]]).T
    to_map = [np.array(source.transform).reshape(3, 3) for source in (image, mask)]
    most = float(np.abs(np.linalg.solve(to_map[0], to_map[1] @ corners) - corners).max())
    if most > 0.5:
        raise DataError(
            f"a label must lie where its image lies, and by its transform is up to {most:.4g} "
            "pixels off. Warp it onto the image (gdalwarp), or remove the transform"
        )


def _check_nodata(nodata, decode):
    """Raises a DataError if the "no data" value of a mask is a class, too."""
    if nodata is None:
        return
    try:
        label = int(decode.read(single_value(nodata))[0, 0])
    except DataError:  # The class table does not have it.
        return
    if label != IGNORE_LABEL:
        raise DataError(
            f'two readings fit: {nodata} is the "no data" value of the file, and the class table '
            "has it. Remove it from the file (gdal_edit.py -unsetnodata), or give its row `ignore`"
        )


def _regions(split, height, ratios):
    """Returns `(split, first row, row after the last)` of the parts of an image."""
    if ratios is None:
        return [(split, 0, height)]
    ends = np.rint(np.cumsum(list(ratios.values())) * height).astype(int).tolist()
    regions = list(zip(ratios, [0, *ends[:-1]], ends, strict=True))
    if any(first == last for _, first, last in regions):
        raise DataError(f"{height} rows are too few to be divided by {ratios}")
    return regions


def _tiles(example, size, rows, tile, overlap, split):
    """The tiles of the rows of an image, row by row."""
    files = _files(example)
    down = _place(*rows, tile[0], overlap, split in EVALUATED)
    across = _place(0, size[1], tile[1], overlap, split in EVALUATED)
    digits = len(str(max(size)))
    for top, bottom, *own_rows in down:
        for left, right, *own_columns in across:
            end = f"_y{top:0{digits}}_x{left:0{digits}}"
            window, owned = (top, bottom, left, right), (*own_rows, *own_columns)
            part = TileExample(files.id + end, files, size, window, owned)
            yield _rewrapped(example, part, end)


def _rewrapped(example, part, end):
    """The part in place of the files of an example with translated labels."""
    if not isinstance(example, RelabeledExample):
        return part
    inner = _rewrapped(example.example, part, end)
    return dataclasses.replace(example, id=example.id + end, example=inner)


def _place(first, last, extent, overlap, divided):
    """Returns `(first, last, first owned, last owned)` of tiles along an axis."""
    extent = min(extent, last - first)
    starts = [*range(first, last - extent, extent - min(overlap, extent - 1)), last - extent]
    if not divided:
        return [(start, start + extent, start, start + extent) for start in starts]
    between = [(a + b + extent) // 2 for a, b in itertools.pairwise(starts)]
    owned = zip([first, *between], [*between, last], strict=True)
    return [(start, start + extent, *part) for start, part in zip(starts, owned, strict=True)]


def bound_memory(splits, workers):
    """Chooses threads and the bytes of decoded parts of files that they need.

    Rows of tiles of a file without tiles share the rows of that file. Each thread needs those that
    it reads; threads are fewer where that would be more than 1 GB.

    Args:
        splits: as `cut` returns.
        workers: int, threads.

    Returns:
        `(workers, cache)`.
    """
    largest = {}
    for example in (_tile_of(e) for examples in splits.values() for e in examples):
        rows = example.window[1] - example.window[0]
        columns = example.window[3] - example.window[2]
        for path in (example.image, example.label):
            known = largest.get(path)
            if known is None or known[0] < rows:
                largest[path] = rows, columns
    most = max((_kept_bytes(path, *extent) for path, extent in largest.items()), default=1)
    workers = max(1, min(workers, _CACHE[1] // (2 * most)))
    return workers, max(_CACHE[0], 2 * workers * most)


def _kept_bytes(path, rows, columns):
    with _connect(path) as source:
        pixel = sum(np.dtype(dtype).itemsize for dtype in source.dtypes)
        height, width = source.block_shapes[0]
        if width >= source.width:  # Strips: as wide as the image.
            return (rows + 2 * height) * width * pixel
        return (rows + 2 * height) * (columns + 2 * width) * pixel


def describe(splits, left_out):
    """Describes of which images the tiles of a data set are, and where.

    Args:
        splits: as `cut` returns; may have other examples, too.
        left_out: dict from split to a set of the ids of the tiles that were left out.

    Returns:
        dict from split to list of dicts, one for each image: `id`, `file` (its name), `size`
        (`[height, width]`), `tiles` (list of `[first row, first column, rows, columns]`, in the
        order of the records) and `left_out` (number of tiles); None if there are no tiles.
    """
    found = {}
    for split, examples in splits.items():
        images = collections.OrderedDict()
        for example in examples:
            part = _tile_of(example)
            if part is None:
                continue
            name = example.id[: len(example.id) - len(part.id) + len(part.parent.id)]
            image = images.setdefault(
                str(part.image),
                {
                    "id": name,
                    "file": pathlib.Path(part.image).name,
                    "size": list(part.size),
                    "tiles": [],
                    "left_out": 0,
                },
            )
            if example.id in left_out.get(split, ()):
                image["left_out"] += 1
                continue
            top, bottom, left, right = part.window
            image["tiles"].append([top, left, bottom - top, right - left])
        if images:
            found[split] = list(images.values())
    return found or None


def _tile_of(example):
    """Returns the tile behind an example, also one with translated labels; None for others."""
    while isinstance(example, RelabeledExample):
        example = example.example
    return example if isinstance(example, TileExample) else None


def is_tile(example):
    """Returns True for a tile, also with translated labels."""
    return _tile_of(example) is not None
