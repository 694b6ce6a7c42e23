import json

import numpy as np
import pytest

from pipelines.datasets.class_map import IGNORE, ClassMap, relabel
from pipelines.datasets.dataset import Found
from pipelines.errors import DataError
from pipelines.examples import read_checked
from tests.pipelines.tiny_data import TAXONOMY, ArrayExample

NAMES = ["ground", "wall", "sky"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("m.json", '{"wall": "thing", "sky": null, "ground": "ignore"}'),
        ("m.csv", "class,becomes\nwall,thing\nsky,\nground,ignore\n"),
        ("m.csv", "wall, thing \nsky\nground,ignore\n"),
    ],
)
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    mapping = ClassMap(tmp_path / name)
    targets, notes = mapping.resolve(NAMES)
    assert targets == {"ground": IGNORE, "wall": "thing", "sky": None} and notes == []
    assert mapping.order(targets) == ["thing"]


def test_others_and_order():
    mapping = ClassMap({"sky": "far", "*": "*", "moon": "far"})
    targets, notes = mapping.resolve(NAMES)
    assert targets == {"ground": "ground", "wall": "wall", "sky": "far"}
    assert mapping.order(targets) == ["far", "ground", "wall"]
    assert notes == ["`class_map` names what the source lacks: 'moon'"]
    dropped, _ = ClassMap({"sky": "sky", "*": None}).resolve(NAMES)
    assert dropped == {"ground": None, "wall": None, "sky": "sky"}
    assert ClassMap(None).resolve(NAMES)[0] == {name: name for name in NAMES}


def test_masks():
    example = ArrayExample("a", np.zeros((1, 4, 3), "uint8"), np.uint8([[0, 1, 2, 7]]))
    found = Found(TAXONOMY, {"train": [example]}, ["old"])
    merged = relabel(found, ClassMap({"sky": "far", "wall": "far", "ground": None, "x": "far"}))
    assert merged.taxonomy.class_names == ["far"]
    assert merged.taxonomy.palette == [[200, 180, 160]]  # Of the wall, the source's first.
    assert merged.notes == ["old", "`class_map` names what the source lacks: 'x'"]
    (new,) = merged.splits["train"]
    labels = read_checked(new, merged.taxonomy).labels
    np.testing.assert_array_equal(labels, [[255, 0, 0, 255]])
    assert json.dumps(new.fingerprint)
    other = relabel(found, ClassMap({"sky": "far", "*": None})).splits["train"][0]
    assert other.fingerprint != new.fingerprint


@pytest.mark.parametrize(
    "value, message",
    [
        ({"sky": "far"}, "`class_map` must name every class of the source. Missing: 'ground', 'wa"),
        ({}, "`class_map` must name classes, and is empty"),
        ({"sky": 3}, "must map names to names or null. Received: 'sky': 3"),
        ({"sky": "*"}, r"only '\*' can become '\*'. Received: 'sky'"),
        ({"a b": "x", "a  b": "x"}, "must name a class once. Named twice: 'a b'"),
        ("gone.json", "The class map gone.json cannot be read: No such file"),
    ],
)
def test_mistakes(value, message):
    with pytest.raises(DataError, match=message):
        ClassMap(value).resolve(NAMES)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("m.json", "[1]", "m.json must map names to names"),
        ("m.json", "{", "m.json must be JSON, or CSV and end in .csv"),
        ("m.json", '{"a": "b", "a": "c"}', "m.json must name a class once. Named twice: 'a'"),
        ("m.csv", "a,b,c\n", "m.csv: a row must be a class and what it becomes"),
    ],
)
def test_mistakes_in_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        ClassMap(tmp_path / name)


def test_nothing_left():
    with pytest.raises(DataError, match="No class is left"):
        relabel(Found(TAXONOMY, {"train": []}), ClassMap({"*": "ignore"}))
