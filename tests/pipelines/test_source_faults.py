"""A user's folder is damaged at random: preparing it gives one line, or labels that are right."""

import shutil
import zlib

import numpy as np
import pytest
import tensorflow as tf

import pipelines
from pipelines import data_report
from pipelines.encoding import decode_whole, parse_record
from pipelines.errors import DataError
from pipelines.manifest import exists
from tests.pipelines.tiny_data import encode

SIZE = (12, 16)
IMAGES = 6
TABLE = "name,color,value,ignore\r\nground,#285a28,0,\r\ndisc,#c83c3c,1,\r\nvoid,#000000,7,yes\r\n"
DAMAGES = 200
PARTS = 4  # Of the damages: one test each, for xdist.


def truth(number):
    """The values of a mask."""
    return np.random.default_rng(number).choice(np.uint8([0, 1, 7, 255]), SIZE)


def write_source(folder):
    rng = np.random.default_rng(9)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(IMAGES):
        image = rng.integers(0, 256, (*SIZE, 3)).astype("uint8")
        (folder / f"images/{number}.jpg").write_bytes(encode(image, ".jpg"))
        (folder / f"masks/{number}.png").write_bytes(encode(truth(number)))
    (folder / "classes.csv").write_text(TABLE, newline="")
    (folder / "train.txt").write_text("".join(f"images/{i}.jpg masks/{i}.png\n" for i in range(4)))
    (folder / "val.txt").write_text("4\n5\n")


def flip_bits(rng, path, _):
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(8 * len(content))
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def cut_off(rng, path, _):
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def overwrite(rng, path, _):
    content = path.read_bytes()
    start, count = rng.integers(len(content)), rng.integers(1, 30)
    new = rng.integers(0, 256, count).astype("uint8").tobytes()
    path.write_bytes(content[:start] + new + content[start + count :])


def insert(rng, path, _):
    content = path.read_bytes()
    start = rng.integers(len(content))
    new = rng.choice([b"\0", b"\r", b'"', b",", b";", b"\xff\xfe", b"\n", b"7", b"\\", b"\xc3"])
    path.write_bytes(content[:start] + bytes(new) + content[start:])


def delete(rng, path, _):
    path.unlink()


def empty(rng, path, _):
    path.write_bytes(b"")


def zeros(rng, path, _):
    path.write_bytes(bytes(len(path.read_bytes())))


def rename(rng, path, _):
    path.rename(path.with_suffix(rng.choice([".gif", ".jpg", ".bak", ".PNG", ".txt"])))


def become_another(rng, path, others):
    path.write_bytes(others[rng.integers(len(others))].read_bytes())


def become_a_folder(rng, path, _):
    path.unlink()
    path.mkdir()


KINDS = [
    flip_bits, cut_off, overwrite, insert, delete, empty, zeros, rename, become_another,
    become_a_folder,
]  # fmt: skip


def labels_of(folder):
    """Everything that was prepared: dict from id to labels."""
    found = {}
    for split in pipelines.read_manifest(folder).splits.values():
        for shard in split.shards:
            for record in tf.data.TFRecordDataset(str(folder / shard.file)):
                _, labels, key = decode_whole(parse_record(record))
                found[key.numpy().decode()] = labels.numpy()
    return found


def is_right(folder, source, sound):
    """Returns True if the labels are those of the existing mask files."""
    by_value = {0: 0, 1: 1, 7: 255, 255: 255}
    masks = {zlib.crc32(content): int(stem) for stem, content in sound.items()}
    for key, labels in labels_of(folder).items():
        content = next((source / "masks").glob(f"{key}.*")).read_bytes()
        # A mask that was not noticed to be damaged would have no number.
        values = truth(masks[zlib.crc32(content)])
        if not (labels == np.vectorize(by_value.get)(values)).all():
            return False
    return True


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_sources(tmp_path, part, monkeypatch):
    # Takes most of the time, and shows what is checked here.
    monkeypatch.setattr(data_report, "draw_samples", lambda *_, **__: np.zeros((1, 1, 3), "uint8"))
    write_source(tmp_path / "sound")
    sound = {p.stem: p.read_bytes() for p in (tmp_path / "sound/masks").iterdir()}
    outcomes = {"refused": 0, "right": 0}
    for number in range(part, DAMAGES, PARTS):
        rng = np.random.default_rng(number)
        source, output = tmp_path / f"source{number}", tmp_path / f"out{number}"
        shutil.copytree(tmp_path / "sound", source)
        # Tables and lists are few: each of them is as likely as all masks together.
        groups = [sorted(source.glob("*.*")), *(sorted(p.iterdir()) for p in source.glob("*/"))]
        files = groups[rng.integers(len(groups))]
        path, kind = files[rng.integers(len(files))], KINDS[rng.integers(len(KINDS))]
        kind(rng, path, files)
        what = f"{number}: {kind.__name__} of {path.relative_to(source)}"
        try:
            prepare(source, output)
        except DataError as error:
            assert str(error) and "\n" not in str(error), what
            assert not exists(output), what
            outcomes["refused"] += 1
            continue
        # A table or a list that was changed to another sound one means something else.
        assert path.suffix in (".csv", ".txt") or is_right(output, source, sound), what
        outcomes["right"] += 1
    assert min(outcomes.values()) > 0, outcomes


def prepare(source, output):
    return pipelines.prepare("folder", source, output, progress=False, workers=1)


def test_the_sound_source(tmp_path):
    write_source(tmp_path / "sound")
    sound = {p.stem: p.read_bytes() for p in (tmp_path / "sound/masks").iterdir()}
    manifest = prepare(tmp_path / "sound", tmp_path / "out")
    assert {name: split.num_images for name, split in manifest.splits.items()} == {
        "train": 4,
        "val": 2,
    }
    assert is_right(tmp_path / "out", tmp_path / "sound", sound)
