"""docs/annotation_formats.md: every command of it, on a tiny data set."""

import shlex

import pytest

import pipelines
from kseg.commands import prepare
from pipelines.datasets.importers import IMPORTERS
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
