"""The data sets: which files, which classes, which label map.

Each module has `taxonomy()` and `find_examples(source)`.
"""

from pipelines.datasets import ade20k, camvid

FILE_DATASETS = {"ade20k": ade20k, "camvid": camvid}
