"""From a data set's files, or from nothing, to records."""

import pathlib

from pipelines import datasets, records, report
from pipelines.errors import DataError


def prepare(
    name,
    source=None,
    output=None,
    *,
    num_shards=None,
    workers=None,
    overwrite=False,
    progress=True,
    **options,
):
    """Writes a data set as records, and a report. Does nothing if that was done before.

    Args:
        name: str, one of `pipelines.datasets.DATASETS`.
        source: the download, as for `pipelines.sources.open_source`: a folder, an archive, or a
            list of them; None for `synthetic`.
        output: folder of the records; default: `data/<name>`.
        num_shards, workers, overwrite, progress: as for `pipelines.records.write`.
        **options: of the data set's `find`.

    Returns:
        `pipelines.records.Manifest`.

    Raises:
        DataError: if the name is unknown, the source has another layout, files are unusable, or
            the output holds other data.
    """
    dataset = datasets.get(name)
    if source is None and name in datasets.FILE_DATASETS:
        raise DataError(f"{name!r} is made from files. Give its download: a folder or an archive")
    found = dataset.find(source, **options)
    return records.write(
        output or f"data/{name}",
        name,
        found.taxonomy,
        found.splits,
        options=options,
        num_shards=num_shards,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
        describe=report.write,
    )


def prepare_once(name, folder, **options):
    """Prepares a data set that needs no source where no data set is yet.

    Args:
        name: str, `synthetic`.
        folder: of the records. What is there is taken as it is, however it was made.
        **options: as for `prepare`.

    Returns:
        `pipelines.records.Manifest`.

    Raises:
        DataError: as for `prepare`, or if what is there is damaged.
    """
    if (pathlib.Path(folder) / records.MANIFEST).exists():
        return records.read_manifest(folder)
    return prepare(name, output=folder, **options)
