"""docs/annotation_formats.md: every command of it, on a tiny data set."""

import shlex

import numpy as np
import pytest

import pipelines
from kseg.commands import prepare
from pipelines.datasets.importers import IMPORTERS
from pipelines.examples import read_checked
from tests.pipelines.datasets import tiny_annotations
from tests.test_docs import PAGES, blocks

COMMANDS = [
    shlex.split(line)
    for text in blocks(PAGES["annotation_formats.md"], "sh")
    for line in text.splitlines()
    if line.strip()
]


def test_the_page_has_every_format():
    assert {command[2] for command in COMMANDS} >= set(IMPORTERS)
    assert set(prepare.IMPORTERS) == set(IMPORTERS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[2])
def test_commands(tmp_path, monkeypatch, command):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    getattr(tiny_annotations, f"write_{command[2]}")(tmp_path / command[4])
    assert command[:2] == ["python", "scripts/prepare_data.py"]
    assert prepare.main(command[2:]) == 0
    manifest = pipelines.read_manifest(tmp_path / command[6])
    assert list(manifest.splits) == ["train", "val"]
    names = {"car", "person"} if command[2] == "pascal_voc" else {"car", "tree"}
    for split in manifest.splits.values():
        pixels = dict(zip(manifest.class_names, split.pixels, strict=False))
        assert min(pixels[name] for name in names) > 0


@pytest.mark.parametrize("name", sorted({*IMPORTERS} - {"yolo"}))
def test_arrays_that_annotations_name(tmp_path, name):
    getattr(tiny_annotations, f"write_{name}")(tmp_path)
    found, arrays = pipelines.datasets.get(name).find(tmp_path), {}
    examples = [example for part in found.splits.values() for example in part]
    expected = [read_checked(example, found.taxonomy).labels for example in examples]
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        named = path.with_name(path.name.replace(".jpg", ".npy"))
        if path.suffix == ".jpg":
            values = np.full((*tiny_annotations.SIZE, 2), len(arrays), "uint16")
            np.save(named, values)
            arrays[str(named)] = values
        else:
            named.write_text(path.read_text().replace(".jpg", ".npy"))
        if named != path:
            path.unlink()
    found = pipelines.datasets.get(name).find(tmp_path)
    examples = [example for part in found.splits.values() for example in part]
    assert len(examples) == len(arrays) == 2
    for example, labels in zip(examples, expected, strict=True):
        read = read_checked(example, found.taxonomy, channels=2, dtype="uint16")
        np.testing.assert_array_equal(read.pixels, arrays[str(example.image)])
        np.testing.assert_array_equal(read.labels, labels)
