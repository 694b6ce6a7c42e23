import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf

from pipelines import encoding, loader, paths, records, verification
from pipelines.errors import DataError
from pipelines.manifest import exists, read_manifest
from tests.pipelines.tiny_data import (
    TAXONOMY,
    ArrayExample,
    encode,
    noise_example,
    smooth_example,
    write,
)


def examples_of(folder, split="train"):
    """Reads the records with nothing but TensorFlow."""
    for file in sorted(folder.glob(f"{split}-*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(file)):
            yield tf.train.Example.FromString(record.numpy()).features.feature


def tiles_of(features):
    """The labels of an image no larger than a tile, with what fills the tile up."""
    (tile,) = features["tiles"].bytes_list.value
    return np.frombuffer(zlib.decompress(tile), "uint8").reshape(128, 256)


def test_what_is_written(tmp_path):
    sizes = [(20, 30), (11, 13), (20, 30), (9, 40), (16, 16)]
    written = [noise_example(i, size) for i, size in enumerate(sizes)]
    written[1].suffix = ".jpg"
    written[0].labels[0, :4] = 7
    manifest = write(tmp_path, written, num_shards=2, options={"key": "value"})

    found = list(examples_of(tmp_path))
    assert [f["id"].bytes_list.value[0].decode() for f in found] == [e.id for e in written]
    pixels = np.zeros(4, int)
    for features, example in zip(found, written, strict=True):
        image, _ = example.read()
        assert features["image"].bytes_list.value[0] == image  # Bit for bit.
        labels = tiles_of(features)[: example.labels.shape[0], : example.labels.shape[1]]
        np.testing.assert_array_equal(labels, np.where(example.labels == 7, 255, example.labels))
        size = [features[key].int64_list.value[0] for key in ("height", "width")]
        assert tuple(size) == example.labels.shape
        for label in (0, 1, 2):
            pixels[label] += (example.labels == label).sum()
    pixels[3] = 4

    split = manifest.split("train")
    assert (split.num_images, split.image_size) == (5, None)
    assert split.pixels == pixels.tolist()
    masks = [[(e.labels == value).any() for value in (0, 1, 2, 7)] for e in written]
    assert split.images == np.sum(masks, axis=0).tolist()
    assert [shard.file for shard in split.shards] == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    ]
    assert [len(shard.offsets) for shard in split.shards] == [3, 2]
    for shard in split.shards:
        content = (tmp_path / shard.file).read_bytes()
        assert len(content) == shard.bytes
        # A record begins with the length of its content; 16 bytes frame it.
        lengths = [int.from_bytes(content[o : o + 8], "little") for o in shard.offsets]
        ends = np.array(shard.offsets) + lengths + 16
        assert ends.tolist() == [*shard.offsets[1:], shard.bytes]

    assert read_manifest(tmp_path) == manifest == verification.verify(tmp_path, progress=False)
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert (stored["num_classes"], stored["ignore_label"]) == (3, 255)
    assert stored["class_names"] == TAXONOMY.class_names
    assert stored["palette"] == TAXONOMY.palette
    assert stored["options"] == {"key": "value"}
    assert sorted(p.name for p in tmp_path.iterdir())[0] == "manifest.json"  # Nothing hidden.


def test_one_size(tmp_path):
    assert write(tmp_path, [noise_example(i) for i in range(3)]).split("train").image_size == [
        20,
        30,
    ]


def test_the_same_bytes_with_any_number_of_workers(tmp_path):
    for workers in (1, 4):
        write(
            tmp_path / str(workers),
            [noise_example(i) for i in range(8)],
            num_shards=4,
            workers=workers,
        )
    one, four = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "14")
    assert one == four


def test_more_shards_than_images(tmp_path):
    manifest = write(tmp_path, [noise_example(0), noise_example(1)], num_shards=5)
    assert len(manifest.split("train").shards) == 2


def bad(index, **changes):
    example = noise_example(index)
    for name, value in changes.items():
        setattr(example, name, value)
    return example


def with_bytes(image=None, label=None):
    example = noise_example(3)
    content = example.read()
    example.read = lambda: (
        content[0] if image is None else image,
        content[1] if label is None else label,
    )
    return example


STRANGE = noise_example(3).labels.copy()
STRANGE[:3, :5], STRANGE[5, 5] = 9, 200
JPEG = encode(noise_example(0, (60, 80)).image, ".jpg")


@pytest.mark.parametrize(
    "example, message",
    [
        (
            bad(3, labels=STRANGE),
            r"003: label values must be among 0..2, 7; found 9 \(15 pixels\), 200 \(1 pixels\)",
        ),
        (bad(3, labels=np.zeros((20, 31), "uint8")), r"003: .*\(20, 30\).*\(20, 31\)"),
        (bad(3, labels=np.full((20, 30), 300, "uint16")), r"003: .*found 300 \(600 pixels\)"),
        (bad(3, labels=noise_example(3).image), "003: .*one channel, or three that are equal"),
        (
            with_bytes(image=b"nonsense"),
            "003: an image must be a JPEG, PNG, TIFF, WebP",
        ),
        (with_bytes(image=b""), "003: the file is empty"),
        (with_bytes(image=JPEG[: len(JPEG) // 2]), "003: the JPEG file is truncated"),
        (with_bytes(label=b"nonsense"), "003: the label cannot be decoded"),
        (with_bytes(label=b""), "003: the label cannot be decoded"),
    ],
)
def test_unusable_files(tmp_path, example, message):
    with pytest.raises(DataError, match=message) as error:
        write(tmp_path, [noise_example(0), example])
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="holds no prepared data"):
        read_manifest(tmp_path)


def test_several_problems_are_reported_at_once_and_mended_ones_cost_little(tmp_path):
    examples = [noise_example(i) for i in range(6)]
    broken = [bad(i, labels=np.full((20, 30), 99, "uint8")) for i in (2, 5)]
    with pytest.raises(DataError, match=r"002, 005: .*99 \(600 pixels\)\."):
        write(tmp_path, [*examples[:2], broken[0], *examples[3:5], broken[1]], num_shards=3)
    before = (tmp_path / "train-00000-of-00003.tfrecord").stat().st_mtime_ns
    for example in examples:
        example.reads = 0
    manifest = write(tmp_path, examples, num_shards=3)
    # The shard of the first two was sound, and is kept.
    assert [example.reads for example in examples] == [0, 0, 1, 1, 1, 1]
    assert (tmp_path / "train-00000-of-00003.tfrecord").stat().st_mtime_ns == before
    assert verification.verify(tmp_path, progress=False) == manifest
    write(tmp_path / "fresh", examples, num_shards=3)
    assert (tmp_path / "fresh/manifest.json").read_bytes() == (
        tmp_path / "manifest.json"
    ).read_bytes()


def test_all_problems_are_found_at_once(tmp_path):
    folder = tmp_path / "set [v2]*"  # No pattern.
    examples = [bad(i, labels=np.full((20, 30), 99, "uint8")) for i in range(50)]
    examples += [noise_example(i) for i in range(50, 60)]
    with pytest.raises(DataError, match=r"004 and 45 more: .*\. All 50 are listed in ") as error:
        write(folder, examples, num_shards=6)
    assert str(error.value).count("99 (600 pixels)") == 1
    listed = (folder / "unusable_files.txt").read_text().splitlines()
    assert [line[:4] for line in listed] == [f"{i:03d}:" for i in range(50)]
    assert not list(folder.glob(".unfinished/*.tmp"))
    # What was sound is kept, and the list of what was not goes.
    sound = [noise_example(i) for i in range(50)] + examples[50:]
    manifest = write(folder, sound, num_shards=6)
    assert [example.reads for example in sound] == 50 * [1] + 10 * [1]
    assert verification.verify(folder, progress=False) == manifest
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", *6 * [".tfrecord"]]


def test_nothing_but_ignored_pixels(tmp_path):
    examples = [noise_example(0), noise_example(1)]
    for example in examples:
        example.labels[:] = 7
    with pytest.raises(DataError, match="All pixels of all 2 labels are ignored"):
        write(tmp_path, examples)
    assert not exists(tmp_path)
    examples[1].labels[0, 0] = 1
    assert write(tmp_path, examples).split("train").pixels == [0, 1, 0, 1199]


def test_a_damaged_description_of_a_finished_shard(tmp_path):
    examples = [noise_example(0), bad(1, labels=np.full((20, 30), 99, "uint8"))]
    with pytest.raises(DataError, match="99"):
        write(tmp_path, examples, num_shards=2)
    (description,) = (tmp_path / ".unfinished").glob("*.json")
    description.write_text(description.read_text()[:20])
    manifest = write(tmp_path, [noise_example(0), noise_example(1)], num_shards=2)
    assert verification.verify(tmp_path, progress=False) == manifest


def test_ids_must_be_unique(tmp_path):
    with pytest.raises(DataError, match="ids of split 'train' must be unique"):
        write(tmp_path, [noise_example(0), noise_example(0)])


def test_what_is_complete_is_left_alone(tmp_path, capsys):
    examples = [noise_example(i) for i in range(4)]
    manifest = write(tmp_path, examples)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for example in examples:
        example.reads = 0
    assert write(tmp_path, examples, progress=True) == manifest
    assert "complete already: nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    assert not any(example.reads for example in examples)


def test_other_data_is_replaced_on_demand_only(tmp_path):
    write(tmp_path, [noise_example(i) for i in range(4)], num_shards=4)
    (tmp_path / "notes.txt").write_text("mine")
    others = [noise_example(i) for i in range(5, 7)]
    with pytest.raises(DataError, match=r"holds 'tiny', made from other files .* `overwrite=True`"):
        write(tmp_path, others)
    manifest = write(tmp_path, others, overwrite=True)
    names = ["manifest.json", "notes.txt", "train-00000-of-00001.tfrecord"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert verification.verify(tmp_path, progress=False) == manifest


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class BrokenExample(ArrayExample):
    """Its file fails in a way that no example should, as a drive that is gone does."""

    def read(self):
        raise OSError(5, "Input/output error", "drive")


def test_what_is_replaced_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    manifest = write(folder, [noise_example(i) for i in range(4)], num_shards=2)
    before = snapshot(folder)
    others = [noise_example(i) for i in range(5, 9)]

    def fails(examples, error, match):
        with pytest.raises(error, match=match):
            write(folder, examples, num_shards=2, overwrite=True)
        found = snapshot(folder)
        assert before.items() <= found.items()
        assert not list(folder.glob(".unfinished/*.tmp"))
        assert verification.verify(folder, progress=False) == manifest

    fails([*others[:3], bad(8, labels=np.full((20, 30), 99, "uint8"))], DataError, "99")
    broken = BrokenExample("x", others[3].image, others[3].labels)
    fails([*others[:3], broken], DataError, "drive: Input/output error")
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_record", lambda *_, **__: 1 / 0)
        fails(others, ZeroDivisionError, "division")
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_manifest", lambda manifest: 1 / 0)
        fails(others, ZeroDivisionError, "division")

    # What was finished is not made again; then the new data set is there, and nothing else.
    for example in others:
        example.reads = 0
    new = write(folder, others, num_shards=2, overwrite=True)
    assert [example.reads for example in others] == [0, 0, 0, 0]
    assert verification.verify(folder, progress=False) == new != manifest
    files = [shard.file for shard in new.split("train").shards]
    assert files == [f"train-0000{i}-of-00002-2.tfrecord" for i in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *files]
    # The same again is known to be complete, whatever its files are called.
    assert write(folder, others, num_shards=2) == new
    fresh = write(tmp_path / "fresh", others, num_shards=2)
    assert (fresh.fingerprint, fresh.split("train").content) == (
        new.fingerprint,
        new.split("train").content,
    )


def test_killed_while_the_replaced_files_are_deleted(tmp_path, monkeypatch):
    write(tmp_path, [noise_example(0), noise_example(1)], num_shards=2)
    others = [noise_example(2), noise_example(3)]
    remove = paths.remove

    def stop(path):
        if str(path).endswith("00000-of-00002.tfrecord"):
            raise KeyboardInterrupt
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, others, num_shards=2, overwrite=True)
    assert len(list(tmp_path.glob("*.tfrecord"))) >= 3
    manifest = read_manifest(tmp_path)
    assert write(tmp_path, others, num_shards=2) == manifest
    names = [shard.file for shard in manifest.split("train").shards]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", *names]


def test_records_of_others_are_not_replaced(tmp_path):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    path.write_text("not ours")
    with pytest.raises(DataError, match="another program wrote, such as train-00000-of-00001"):
        write(tmp_path, [noise_example(0)])
    assert path.read_text() == "not ours"


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="there is a file of that name"):
        write(tmp_path / "file", [noise_example(0)])


def test_nothing_prepared(tmp_path):
    for name, command in [
        ("camvid", 'camvid `source="<download>"`'),
        ("synthetic", "synthetic"),
        ("elsewhere", '<data set> `source="<download>"`'),
    ]:
        folder = tmp_path / name
        command = f'kseg prepare {command} `output="{folder}"`'  # Commands show them as flags.
        with pytest.raises(DataError, match=rf"{folder} holds no prepared data .*: {command}$"):
            read_manifest(folder)


def test_a_mistyped_folder_and_one_of_images_are_told(tmp_path):
    write(tmp_path / "mine", [noise_example(0)])
    with pytest.raises(DataError, match=rf"Did you mean {tmp_path}/mine\?$"):
        read_manifest(tmp_path / "min")
    raw = tmp_path / "photos/images"
    raw.mkdir(parents=True)
    command = f'kseg prepare folder `source="{raw.parent}"` `output="data/photos"`'
    with pytest.raises(DataError, match=f"your images and masks: {command}$"):
        read_manifest(raw.parent)


def test_advice_that_ends_all_faults_is_given_once():
    listed = records._shortened(
        ["a: value 3. Give a row. Or not", "b: value 4. Give a row. Or not"]
    )
    assert listed == "a: value 3; b: value 4. Give a row. Or not"
    assert records._shortened(["a: value 3. Give a row"]) == "a: value 3. Give a row"
    faults = [f"{name}: value {name}. Give a row" for name in "abcdefg"]
    assert records._shortened(faults).endswith("; e: value e; and 2 more. Give a row")


def test_missing_and_truncated_shards_are_named(tmp_path):
    write(tmp_path, [noise_example(i) for i in range(4)], num_shards=2)
    path = tmp_path / "train-00001-of-00002.tfrecord"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    message = f"{path} must have {len(content)} bytes and has {len(content) - 1}"
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        read_manifest(tmp_path)
    # The way out that the message names.
    write(tmp_path, [noise_example(i) for i in range(4)], num_shards=2, overwrite=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[:-30], "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: "[" * 100_000, "is damaged .it is nested too deeply"),
        (lambda text: '{"format": ' + "9" * 10_000 + "}", "is damaged"),
        (lambda text: text.replace('"checksum"', '"chicksum"'), "is damaged"),
        (lambda text: text.replace('"wall"', '"hall"'), "was changed after it was written"),
        (
            lambda text: text.replace('"format": 4', '"format": 99'),
            "has format 99.*reads 3, 4 and 5",
        ),
    ],
)
def test_damaged_manifest(tmp_path, change, message):
    write(tmp_path, [noise_example(0)])
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)
    write(tmp_path, [noise_example(0)], overwrite=True)
    read_manifest(tmp_path)


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo])
def test_something_else_in_place_of_a_shard_is_named(tmp_path, put):
    write(tmp_path, [noise_example(0)])
    path = next(tmp_path.glob("train-*"))
    path.unlink()
    put(path)
    with pytest.raises(DataError, match=f"The shard {path} is not a regular file"):
        read_manifest(tmp_path)


def test_verify_finds_every_flipped_bit(tmp_path):
    write(tmp_path, [noise_example(i) for i in range(4)], num_shards=2)
    path = tmp_path / "train-00001-of-00002.tfrecord"
    content = path.read_bytes()
    for place in (0, 9, 12, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(DataError, match=f"{path} is corrupt"):
            verification.verify(tmp_path, progress=False)


def forget_a_class(values):
    values["class_names"].pop()


def move_a_record(values):
    values["splits"]["train"]["shards"][0]["offsets"][1] += 1


def exchange_classes(values):
    values["splits"]["train"]["shards"][0]["classes"][1] = [0]


def rename_a_shard(values):
    values["splits"]["train"]["shards"][0]["key"] = "0" * 16


@pytest.mark.parametrize(
    "change, message",
    [
        (forget_a_class, "record '000' has labels beyond the classes"),
        (move_a_record, "its records are not where the manifest says"),
        (exchange_classes, "the classes in record '001' are not those of the manifest"),
        (rename_a_shard, "record '000' belongs elsewhere"),
    ],
)
def test_verify_checks_the_records_against_the_manifest(tmp_path, change, message):
    """Even where the manifest's own checksum was made to fit."""
    write(tmp_path, [noise_example(0), noise_example(1)])
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    rest = {k: v for k, v in values.items() if k not in CHECKED}
    values["checksum"] = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=f"is corrupt: {message}"):
        verification.verify(tmp_path, progress=False)


CHECKED = ("format", "checksum", "num_classes", "ignore_label")  # Not under the checksum.


def make_format_3(folder):
    """Rewrites a data set as versions before the orientation of images was stored wrote it."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    for split in values["splits"].values():
        del split["content"]
        for shard in split["shards"]:
            file = folder / shard["file"]
            stored = [record.numpy() for record in tf.data.TFRecordDataset(str(file))]
            shard["offsets"], position = [], 0
            with tf.io.TFRecordWriter(str(file)) as writer:
                for record in stored:
                    example = tf.train.Example.FromString(record)
                    del example.features.feature["orientation"]
                    content = example.SerializeToString(deterministic=True)
                    writer.write(content)
                    shard["offsets"].append(position)
                    position += len(content) + 16
            shard["bytes"] = file.stat().st_size
            shard["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    for added in ("value_range",):
        values.pop(added, None)
    rest = {k: v for k, v in values.items() if k not in CHECKED}
    checksum = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    path.write_text(json.dumps({**values, "format": 3, "checksum": checksum}))


def test_format_3_loads(tmp_path):
    examples = [noise_example(0), smooth_example(1, (40, 70), ".jpg"), noise_example(2)]
    batches = {}
    for name in ("new", "old"):
        folder = tmp_path / name
        write(folder, examples, num_shards=2)
        if name == "old":
            make_format_3(folder)
            assert read_manifest(folder).format == 3
        verification.verify(folder, progress=False)
        training = loader.training_dataset(
            folder, "train", batch_size=2, crop_size=(16, 16), seed=0, scale_range=(0.4, 2.0)
        )
        found = [*training.take(4), *loader.evaluation_dataset(folder, "train")]
        batches[name] = [{key: value.numpy() for key, value in batch.items()} for batch in found]
    for new, old in zip(batches["new"], batches["old"], strict=True):
        assert new.keys() == old.keys()
        for key in new:
            np.testing.assert_array_equal(new[key], old[key])

    # The same preparation again neither touches it nor calls it another data set.
    with pytest.raises(DataError, match=r"earlier version of kseg \(format 3\)\. It can be used"):
        write(folder, examples, num_shards=2)
    verification.verify(folder, progress=False)
    write(folder, examples, num_shards=2, overwrite=True)
    assert read_manifest(folder).format == 4


def test_verify_decodes_every_image(tmp_path, monkeypatch):
    """Records whose content was never an image: sound to the last byte, and of no use."""
    example = noise_example(0)
    encode_record = encoding.encode_record

    def spoil(image, labels, **arguments):
        return encode_record(image[:40] + bytes(len(image) - 40), labels, **arguments)

    monkeypatch.setattr(encoding, "encode_record", spoil)
    write(tmp_path, [example])
    message = r"train-00000-of-00001\.tfrecord is corrupt: record '000' cannot be decoded"
    with pytest.raises(DataError, match=message):
        verification.verify(tmp_path, progress=False)


def test_exchanged_shards_are_noticed(tmp_path):
    """Of one size and whole: only what the records say of themselves tells."""
    one = noise_example(0)
    write(tmp_path, [one, ArrayExample("001", one.image, one.labels)], num_shards=2)
    one, other = (tmp_path / f"train-0000{i}-of-00002.tfrecord" for i in (0, 1))
    assert one.stat().st_size == other.stat().st_size
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    read_manifest(tmp_path)
    with pytest.raises(DataError, match=f"{one} is corrupt: its checksum"):
        verification.verify(tmp_path, progress=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{one} is corrupt, gone or another"):
        list(loader.evaluation_dataset(tmp_path, "train"))


def test_images_as_jpegs(tmp_path):
    """Training images only, and only those that are no JPEGs."""
    examples = [smooth_example(0, (40, 70)), smooth_example(1, (40, 70), ".jpg")]
    splits = {"train": examples, "val": examples}
    arguments = {"progress": False, "image_format": "jpeg", "quality": 90}
    records.write(tmp_path, "tiny", TAXONOMY, splits, **arguments)
    stored = {
        split: [f["image"].bytes_list.value[0] for f in examples_of(tmp_path, split)]
        for split in splits
    }
    originals = [example.read()[0] for example in examples]
    assert stored["val"] == originals
    assert stored["train"][1] == originals[1]
    assert tf.io.is_jpeg(stored["train"][0])
    decoded = tf.io.decode_jpeg(stored["train"][0]).numpy().astype(int)
    assert np.abs(decoded - examples[0].image).mean() < 3
    verification.verify(tmp_path, progress=False)
    with pytest.raises(DataError, match="with other options"):
        records.write(tmp_path, "tiny", TAXONOMY, splits, **{**arguments, "quality": 80})


@pytest.mark.parametrize("arguments", [{"image_format": "webp"}, {"quality": 0}])
def test_bad_image_format(tmp_path, arguments):
    with pytest.raises(ValueError, match="must be 'original' or 'jpeg'"):
        write(tmp_path, [noise_example(0)], **arguments)


def test_folders_of_other_file_systems():
    folder = "ram://records/tiny"
    examples = [noise_example(i) for i in range(4)]
    manifest = write(folder, examples, num_shards=2)
    assert verification.verify(folder, progress=False) == manifest
    batches = list(loader.evaluation_dataset(folder, "train"))
    assert [batch["id"].numpy()[0].decode() for batch in batches] == [e.id for e in examples]
    np.testing.assert_array_equal(batches[2]["label"][0], examples[2].labels)
    with pytest.raises(DataError, match="made from other files"):
        write(folder, examples[:3])
    write(folder, examples[:3], overwrite=True)
    assert not tf.io.gfile.exists(f"{folder}/train-00001-of-00002.tfrecord")


def test_two_runs_at_once_write_once(tmp_path):
    """The second waits for the first, and finds its work done."""
    examples = [noise_example(i) for i in range(6)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = [pool.submit(write, tmp_path, examples, num_shards=3) for _ in range(2)]
    assert runs[0].result() == runs[1].result() == verification.verify(tmp_path, progress=False)
    assert [example.reads for example in examples] == [1] * 6


WRITE_SLOWLY = """
import sys, time
from tests.pipelines.tiny_data import ArrayExample, noise_example, write

class SlowExample(ArrayExample):
    def read(self):
        time.sleep(0.25)
        return super().read()

examples = [SlowExample(e.id, e.image, e.labels) for e in map(noise_example, range(8))]
write(sys.argv[1], examples, num_shards=4, workers=1)
"""


def test_a_killed_run_looks_unfinished_and_is_continued(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITE_SLOWLY, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("train-*.tfrecord")) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = len(list(tmp_path.glob("train-*.tfrecord")))
    assert 1 <= finished < 4
    with pytest.raises(DataError, match="holds no prepared data"):
        read_manifest(tmp_path)

    examples = [ArrayExample(e.id, e.image, e.labels) for e in map(noise_example, range(8))]
    write(tmp_path, examples, num_shards=4)
    assert [example.reads for example in examples] == [0] * 2 * finished + [1] * (8 - 2 * finished)
    verification.verify(tmp_path, progress=False)
    write(tmp_path / "fresh", examples, num_shards=4)
    for path in (tmp_path / "fresh").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert len(list(tmp_path.iterdir())) == 4 + 1 + 1


def test_an_interrupted_run_is_continued(tmp_path):
    examples = [noise_example(i) for i in range(6)]

    def interrupt():
        raise KeyboardInterrupt

    examples[3].read = interrupt
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, examples, num_shards=3, workers=1)
    with pytest.raises(DataError, match="holds no prepared data"):
        read_manifest(tmp_path)
    del examples[3].read
    examples[0].reads = 0
    write(tmp_path, examples, num_shards=3)
    assert examples[0].reads == 0
    verification.verify(tmp_path, progress=False)


def elsewhere(function, jobs):
    """Calls as another machine would: what it gets was pickled, some jobs are done twice."""
    for job in [*jobs, *jobs[:1]]:
        pickle.loads(pickle.dumps(functools.partial(function, job)))()


def test_shards_that_are_written_elsewhere(tmp_path):
    examples = [noise_example(i) for i in range(7)]
    here = write(tmp_path / "here", examples, num_shards=3)
    there = write(tmp_path / "there", examples, num_shards=3, distribute=elsewhere)
    assert dataclasses.replace(there, folder=here.folder) == here
    assert not (tmp_path / "there" / ".unfinished").exists()


def test_problems_elsewhere(tmp_path):
    examples = [noise_example(0), noise_example(1), bad(2, labels=STRANGE), noise_example(3)]
    with pytest.raises(DataError, match=r"002: .*found 9 \(15 pixels\)"):
        write(tmp_path, examples, num_shards=2, distribute=elsewhere)
    examples[2] = noise_example(2)
    assert (
        write(tmp_path, examples, num_shards=2, distribute=elsewhere).split("train").num_images == 4
    )
    with pytest.raises(DataError, match=r"The shard train-0.* was not written\. Look at the log"):
        write(tmp_path / "other", examples, distribute=lambda function, jobs: None)


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    """The case of macOS."""
    monkeypatch.delattr(records.os, "sched_getaffinity", raising=False)
    assert records.available_cores() == os.cpu_count()
