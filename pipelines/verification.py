"""Verification of every byte of prepared data."""

import tensorflow as tf

from kseg import waiting
from kseg.progress import Progress
from pipelines import paths
from pipelines.datasets.dataset import IGNORE_LABEL
from pipelines.encoding import decode_image, decode_labels, parse_record
from pipelines.errors import DataError
from pipelines.manifest import again, file_sha256, read_manifest
from pipelines.records import FRAME_HEAD, FRAME_TAIL, classes_in


def verify(folder, *, progress=True):
    """Checks every byte: checksums, records, images, labels.

    Args:
        folder: as given to `write`.
        progress: bool, show progress on stderr.

    Returns:
        `Manifest`.

    Raises:
        DataError: if a shard or record is wrong; names it.
    """
    manifest = read_manifest(folder)
    total = sum(split.num_images for split in manifest.splits.values())
    with Progress("checking", total, shown=progress) as meter:
        for split in manifest.splits.values():
            for shard in split.shards:
                file = paths.join(folder, shard.file)
                try:
                    problem = _find_problem(file, shard, manifest, meter)
                except tf.errors.OpError as error:
                    problem = error.message
                if problem:
                    raise DataError(f"The shard {file} is corrupt: {problem}. {again()}")
    return manifest


def _find_problem(file, shard, manifest, meter):
    """Describes the faults of a shard; None if there are none."""
    if file_sha256(file) != shard.sha256:
        return "its checksum is not that of the manifest"
    offsets, position, pixels = [], 0, manifest.pixel_format
    for number, record in enumerate(waiting.each_batch(tf.data.TFRecordDataset(file))):
        example = parse_record(record, pixels)
        name = example["id"].numpy().decode()
        if example["shard"] != shard.key or example["index"] != number:
            return f"record {name!r} belongs elsewhere"
        try:
            image, labels = decode_image(example, pixels), decode_labels(example).numpy()
        except tf.errors.OpError as error:
            return f"record {name!r} cannot be decoded: {error.message}"
        size = (int(example["height"]), int(example["width"]))
        if not tuple(image.shape[:2]) == labels.shape == size:
            return f"the sizes in record {name!r} differ"
        if (labels[labels != IGNORE_LABEL] >= manifest.num_classes).any():
            return f"record {name!r} has labels beyond the classes"
        if shard.classes[number] != classes_in(labels):
            return f"the classes in record {name!r} are not those of the manifest"
        offsets.append(position)
        position += FRAME_HEAD + len(record.numpy()) + FRAME_TAIL
        meter.advance()
    if offsets != shard.offsets:
        return "its records are not where the manifest says"
    return None
