"""Datasets from TensorFlow Datasets, named `tfds://<name>`.

    tfds://           data set          image, label                     values of the label
    cityscapes        cityscapes        image_left, segmentation_label   0 to 33, those of the files
    oxford_iiit_pet   oxford_iiit_pet   image, segmentation_mask         1 pet, 2 background, 3 edge
    scene_parse150    ade20k            image, annotation                red: 1 to 100, see below

`cityscapes` has the splits `train`, `val`, `test`. Only `train_extra` is used from
`cityscapes/semantic_segmentation_extra`: its other splits have coarse labels, too.
`oxford_iiit_pet` has `train` and `test`. The `test` split of `scene_parse150` holds the validation
images; it becomes `val`.

`scene_parse150` holds the *instance* masks of ADE20K: only 100 of the 150 classes occur,
the things; all other pixels are ignored. For all classes, prepare ADEChallengeData2016.
"""

import dataclasses
import functools
import threading

from pipelines.datasets import ade20k, cityscapes, oxford_iiit_pet
from pipelines.datasets.dataset import Found, as_label_map, facts
from pipelines.datasets.label_files import INDEX_MASK, Recoded, RedChannel
from pipelines.errors import DataError

SCHEME = "tfds://"


@dataclasses.dataclass(frozen=True)
class _Mapping:
    """Description of a data set of TensorFlow Datasets, for reading it.

    Attributes:
        dataset: str, kseg's name of the data set.
        module: its module.
        image, label: str, names of features.
        decode: one of `label_files`.
        splits: dict from the name of a split there to kseg's.
    """

    dataset: str
    module: object
    image: str
    label: str
    decode: object
    splits: dict


@functools.cache
def _mappings():
    instances = as_label_map(facts("ade20k")["label_map_instances"])
    # To the numbers of the files of ADE20K: 0, and one more than the label.
    table = tuple((instances[value] + 1) % 256 for value in range(len(instances)))
    return {
        "cityscapes": _Mapping(
            "cityscapes",
            cityscapes,
            "image_left",
            "segmentation_label",
            INDEX_MASK,
            {"train": "train", "validation": "val", "test": "test"},
        ),
        "oxford_iiit_pet": _Mapping(
            "oxford_iiit_pet",
            oxford_iiit_pet,
            "image",
            "segmentation_mask",
            INDEX_MASK,
            {"train": "train", "test": "test"},
        ),
        "scene_parse150": _Mapping(
            "ade20k",
            ade20k,
            "image",
            "annotation",
            Recoded(RedChannel(), "the 100 instance classes", table),
            {"train": "train", "test": "val"},
        ),
    }


def find(name, source, data_dir=None):
    """Lists the examples of a data set, which is downloaded if TensorFlow Datasets can do so.

    Args:
        name: str, kseg's name of the data set.
        source: str, `tfds://<name>`, perhaps with `/<config>` and `:<version>`.
        data_dir: folder of TensorFlow Datasets; default: its own (~/tensorflow_datasets, or
            TFDS_DATA_DIR).

    Returns:
        `Found`, of `TfdsExample`.

    Raises:
        DataError: if the name is unknown or of another data set, or the data are unavailable.
    """
    full_name = source.removeprefix(SCHEME)
    mapping = _mappings().get(full_name.split("/")[0].split(":")[0])
    known = {key: mapping.dataset for key, mapping in _mappings().items()}
    if mapping is None or mapping.dataset != name:
        fitting = [f"{SCHEME}{key}" for key, dataset in known.items() if dataset == name]
        raise DataError(
            f"{source} is not a source of {name!r}. "
            + (f"Use {fitting[0]}" if fitting else "That has none in TensorFlow Datasets")
        )
    builder = _builder(full_name, data_dir)
    splits = mapping.splits
    if "train_extra" in builder.info.splits:
        splits = {"train_extra": "train_extra"}
    if missing := {mapping.image, mapping.label} - set(builder.info.features):
        raise DataError(f"{source} has no {', '.join(sorted(missing))}. Use another config of it")
    data_dir = None if data_dir is None else str(data_dir)
    examples = {
        ours: [
            TfdsExample(
                full_name, data_dir, theirs, index, mapping.image, mapping.label, mapping.decode
            )
            for index in range(builder.info.splits[theirs].num_examples)
        ]
        for theirs, ours in splits.items()
        if theirs in builder.info.splits
    }
    return Found(mapping.module.taxonomy(), examples)


@functools.lru_cache(maxsize=8)
def _builder(full_name, data_dir):
    """Opens a data set and prepares it if necessary.

    Raises:
        DataError: if the data set is unavailable.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(full_name, data_dir=data_dir, try_gcs=False)
        if not builder.is_prepared():
            builder.download_and_prepare()
    except Exception as error:  # Network, disk or the builder's own code may raise anything.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise DataError(f"TensorFlow Datasets cannot give {full_name}: {reason}") from None
    return builder


_open = threading.local()


@dataclasses.dataclass(frozen=True)
class TfdsExample:
    """An example of TensorFlow Datasets.

    Examples are stored sequentially: reading them in order is fast.

    Attributes:
        name: str, name of the data set in TensorFlow Datasets.
        data_dir: str or None.
        split: str, name of the split there.
        index: int, position in the split.
        image, label: str, names of features.
        decode: one of `label_files`.
    """

    name: str
    data_dir: str | None
    split: str
    index: int
    image: str
    label: str
    decode: object

    @property
    def id(self):
        """The split and the position in it: the same data always has the same ids."""
        return f"{self.split}_{self.index:06d}"

    @property
    def fingerprint(self):
        """The version of the data set, and the example's position in it."""
        info = _builder(self.name, self.data_dir).info
        return [info.full_name, info.splits[self.split].num_bytes, self.id, repr(self.decode)]

    def read(self):
        """Returns the bytes of image and label, as stored."""
        key = (self.name, self.data_dir, self.split)
        if getattr(_open, "place", None) != (*key, self.index):
            _open.examples = self._open()
        try:
            features = next(_open.examples)
        except Exception as error:
            _open.place = None
            raise DataError(f"{self.name}: example {self.id} cannot be read ({error})") from None
        _open.place = (*key, self.index + 1)
        return features[self.image], features[self.label]

    def _open(self):
        """Returns an iterator that starts at this example."""
        import tensorflow_datasets as tfds

        names = (self.image, self.label)
        dataset = _builder(self.name, self.data_dir).as_dataset(
            split=f"{self.split}[{self.index}:]",
            decoders=tfds.decode.PartialDecoding(
                dict.fromkeys(names, True),
                decoders={name: tfds.decode.SkipDecoding() for name in names},
            ),
            # Read one file after the other: interleaving would change the positions.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            shuffle_files=False,
        )
        return iter(dataset.as_numpy_iterator())
