"""Hugging Face data sets of images and masks on disk: Parquet files or `save_to_disk` output.

    data/train-00000-of-00002.parquet        or   train/data-00000-of-00001.arrow

A row has an image and a mask, stored like `datasets.Image`. The split follows from the names of
files and folders. As for `folder`, a class table in the source (such as the Hub's `id2label.json`)
or given as an option defines the values of the masks. Needs pyarrow. Rows are read on demand, one
row group at a time.
"""

import contextlib
import dataclasses
import functools
import pathlib

from kseg.errors import option
from pipelines.datasets.annotated import (
    AnnotatedImage,
    Files,
    check_choice,
    split_examples,
    stem_of,
)
from pipelines.datasets.dataset import FileExample
from pipelines.datasets.folder import UNKNOWN, read_table
from pipelines.datasets.masks import MASKS, read_masks
from pipelines.datasets.splits import split_of
from pipelines.datasets.thread_cache import cached_by_thread
from pipelines.errors import DataError
from pipelines.sources import Member, fingerprint

EXPECTED = "Parquet or Arrow files with columns of images and masks"
_IMAGES = ("image", "img", "images")
_LABELS = (
    "label", "mask", "annotation", "labels", "masks", "semantic_mask", "segmentation_mask",
    "seg_mask", "segmentation",
)  # fmt: skip
ENDS = (".parquet", ".arrow")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A file in a cell of a table; reads like a `pathlib.Path`.

    Attributes:
        file: the file of the table.
        columns: tuple of str, the columns that are read together.
        column: int, index of the cell's column in `columns`.
        group, row: int, row group in the file, and row in the group.
    """

    file: pathlib.Path | Member
    columns: tuple
    column: int
    group: int
    row: int

    def __str__(self):
        return f"{self.file}, group {self.group}, row {self.row}, {self.columns[self.column]}"

    @property
    def fingerprint(self):
        """The table's fingerprint and the cell's position."""
        return [fingerprint(self.file), self.columns[self.column], self.group, self.row]

    def read_bytes(self):
        """The content.

        Raises:
            DataError: if the cell holds no file, or cannot be read.
        """
        state = tuple(fingerprint(self.file))
        columns = _read_group(self.file, state, self.group, self.columns)
        with _reading(f"{self.file}, group {self.group},"):
            value = columns[self.column][self.row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise DataError(f"{self}: must hold the bytes of an image file")
        return value


def matches(path, head, files):
    """Returns True: the ending of a file's name tells this format."""
    return True


def find(
    source,
    *,
    classes=None,
    image_column=None,
    label_column=None,
    masks="auto",
    unknown="error",
    split=None,
    seed=0,
):
    """Lists the examples of each split.

    Args:
        source: as for `pipelines.sources.open_source`.
        classes, masks, unknown, split, seed: as for `pipelines.datasets.folder.find`.
        image_column, label_column: str, names of the columns; default: the usual ones.

    Returns:
        `Found`.

    Raises:
        DataError: if pyarrow is missing, or files, columns or classes cannot be found or used.
    """
    _pyarrow()
    check_choice("masks", masks, MASKS)
    check_choice("unknown", unknown, UNKNOWN)
    files = Files(source)
    tables = files.with_end(*ENDS)
    if not tables:
        raise DataError(f"{files.name} must hold {EXPECTED}")
    table, notes = read_table(files.source, classes)
    images, examples = [], []
    for path, file in tables:
        names, sizes = _describe(file)
        columns = (
            _choose(file, names, image_column, _IMAGES, "image_column"),
            _choose(file, names, label_column, _LABELS, "label_column"),
        )
        number = 0
        for group, size in enumerate(sizes):
            for row in range(size):
                image, label = (Cell(file, columns, i, group, row) for i in (0, 1))
                key = f"{stem_of(path)}/{number:06d}"
                number += 1
                images.append(AnnotatedImage(key, image, file, None, [], split_of(path)))
                examples.append(FileExample(key, image, label))
    if not examples:
        raise DataError(f"{files.name} has no row in its tables")
    splits = split_examples(files, images, examples, split, seed)
    return read_masks(table, splits, masks, unknown, notes=[*notes, *table.notes])


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "reading Parquet and Arrow files needs pyarrow. Install it: pip install 'kseg[parquet]'"
        ) from None
    return pyarrow


@contextlib.contextmanager
def _reading(where):
    """Makes errors of pyarrow a DataError that names the location."""
    arrow = _pyarrow()
    try:
        yield
    except DataError:
        raise
    except (arrow.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where} cannot be read as a table: {reason}") from None
    except MemoryError:  # Damaged sizes can be huge.
        raise DataError(f"{where} cannot be read as a table: it does not fit the memory") from None


def _open(file):
    """Returns the table of a file; opened only once."""
    return _open_as_of(file, tuple(fingerprint(file)))


@functools.lru_cache(maxsize=64)
def _open_as_of(file, state):
    return _open_anew(file)


def _open_anew(file):
    arrow = _pyarrow()
    source = arrow.BufferReader(file.read_bytes()) if isinstance(file, Member) else str(file)
    with _reading(file):
        if _is_parquet(file):
            return arrow.parquet.ParquetFile(source)
        stream = arrow.memory_map(source) if isinstance(source, str) else source
        table = arrow.ipc.open_stream(stream).read_all()
        table.validate(full=True)  # Reading at damaged offsets would end the process.
        return table


def _is_parquet(file):
    return file.name.lower().endswith(".parquet")


def _describe(file):
    """Returns the names of the columns, and the number of rows of each row group."""
    table = _open(file)
    if _is_parquet(file):
        with _reading(file):
            rows = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            return table.schema_arrow.names, rows
    return table.column_names, [table.num_rows]


@cached_by_thread(2)  # A thread reads the rows of a group one after another.
def _read_group(file, state, group, columns):
    with _reading(f"{file}, group {group},"):
        if _is_parquet(file):
            # A new reader: an open one must not be shared between threads.
            table = _open_anew(file).read_row_group(group, columns=list(columns))
            table.validate(full=True)
        else:
            table = _open(file)
        return [table[name] for name in columns]


def _choose(file, names, given, usual, name):
    if given is not None and given in names:
        return given
    found = [column for column in usual if column in names]
    if given is not None or not found:
        raise DataError(
            f"{file} has the columns {', '.join(names)}. Say which holds the "
            f"{'images' if name == 'image_column' else 'masks'}: {option(name, 'NAME')}"
        )
    return found[0]
