"""The data sets: which files, which classes, which label map.

Each module has `taxonomy()`, which gives a `Taxonomy`, and `find_examples(source, **options)`,
which gives a dict from split to a list of examples as `pipelines.records.write` takes them.
"""

import json
import pathlib

from pipelines.datasets import ade20k, camvid, synthetic
from pipelines.errors import DataError

FILE_DATASETS = {"ade20k": ade20k, "camvid": camvid}
DATASETS = {**FILE_DATASETS, "synthetic": synthetic}


def get(name):
    """Gives the module of a data set.

    Raises:
        DataError: if there is none of that name.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}. Use one of: {', '.join(DATASETS)}")
    return DATASETS[name]


def homepage(name):
    """Where a data set can be had: an address, or None for one that is made here.

    Raises:
        DataError: if there is none of that name.
    """
    get(name)
    text = (pathlib.Path(__file__).parent / f"{name}.json").read_text()
    return json.loads(text).get("homepage")
