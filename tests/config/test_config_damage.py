"""Configs that nobody means: each is one line, at once, and nothing else happens."""

import copy
import json
import os
import pathlib
import string

import hypothesis
import pytest
from hypothesis import strategies as st

from kseg import config
from kseg.classes import Classes
from kseg.config import loading
from kseg.errors import UserError
from kseg.runs import Run

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = {
    path.name: json.loads(path.read_text())
    for path in sorted((ROOT / "configs").glob("*.json"))
    if path.name != "schema.json"
}


def one_line(function, *arguments):
    """The only line of the error that a call ends with."""
    with pytest.raises(config.ConfigError) as caught:
        function(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def load_text(folder, content):
    path = folder / "experiment.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return config.load(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"extends": 3}', "`extends` must be the name of a config file"),
        ('{"extends": {"a": 1}}', "`extends` must be the name of a config file"),
        ('{"extends": [["a"]]}', "`extends` must be the name of a config file"),
        ('{"extends": "a\\u0000b"}', "holds characters that no text has"),
        ('{"name": "\\ud800"}', "holds characters that no text has"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' is there twice"),
        ('{"data": {"path": "a", "path": "b"}}', "the key 'path' is there twice"),
        ('{"seed": NaN}', "NaN is no number of JSON"),
        ('{"seed": %s}' % ("1" * 5000), "is not a readable JSON file"),
        ('{"seed": %s}' % ("1" * 4000), "numbers must be below 2^31"),
        ('{"seed": 1e999}', "numbers must be below 2^31"),
        ("[" * 50_000, "nested too deep"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deep"),
        ('{"a": %s}' % ("[" * 40 + "]" * 40), "nested deeper than 32 levels"),
        ("[]", "must hold a JSON object"),
        ("", "is not a readable JSON file"),
        (b"\xff\xfe\x00", "is not a readable JSON file"),
        (b" " * 2_000_000, "which is no config"),
        ('{"name": "%s"}' % ("n" * 300), "at most 200 characters"),
        ('{"extends": "%s"}' % ("n" * 300), "cannot be read: File name too long"),
    ],
)
def test_contents_are_one_line(tmp_path, content, message):
    assert message in one_line(load_text, tmp_path, content)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    values = json.dumps(CONFIGS["quickstart.json"]).encode()
    assert load_text(tmp_path, b"\xef\xbb\xbf" + values) == load_text(tmp_path, values)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "", "loop", "a\0b", "n" * 300, "\ud800"):
        one_line(config.load, tmp_path / name)
    assert "must be a file" in one_line(config.load, tmp_path / "pipe")


def test_files_that_many_extend_are_read_once(tmp_path, monkeypatch):
    """Each of 16 files extends the next one twice: 2^16 paths lead to the last."""
    (tmp_path / "16.json").write_text(json.dumps(CONFIGS["quickstart.json"]))
    for number in range(16):
        text = json.dumps({"extends": [f"{number + 1}.json"] * 2})
        (tmp_path / f"{number}.json").write_text(text)
    read, read_json = [], config.read_json
    monkeypatch.setattr(loading, "read_json", lambda path: read.append(path) or read_json(path))
    assert config.load(tmp_path / "0.json").name == "0"
    assert len(read) == 17


def test_a_chain_without_end(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.json").write_text(json.dumps({"extends": f"{number + 1}.json"}))
    assert "deeper than 32 files" in one_line(config.load, tmp_path / "0.json")


@pytest.mark.parametrize(
    "override, message",
    [
        ("extends=base.json", "a key of config files"),
        ('data={"path": "a", "path": "b"}', "the key 'path' is there twice"),
        ("train.steps=" + "9" * 5000, "Received: '999"),
        ("train.steps=1e400", "below 2^31"),
        ("data.path=a\0b", "no text has"),
        ("seed=" + "[" * 50_000, "Received: '[[["),
    ],
)
def test_overrides_are_one_line(override, message):
    quickstart = ROOT / "configs/quickstart.json"
    assert message in one_line(config.load, quickstart, [override])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.text(string.ascii_lowercase + "_", max_size=12)
    | st.sampled_from(["hrnet_w48", "ocr", "c2", "\ud800", "\0", 10**30, -1, 0, 1e-300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


def places(node, place=()):
    """The paths of all values of a config."""
    yield place
    items = enumerate(node) if isinstance(node, list) else ()
    for key, value in node.items() if isinstance(node, dict) else items:
        yield from places(value, (*place, key))


def mutate(data, values):
    """Removes, replaces, renames or doubles a value somewhere."""
    *parents, last = data.draw(st.sampled_from([p for p in places(values) if p]))
    node = values
    for key in parents:
        node = node[key]
    kind = data.draw(st.sampled_from(["remove", "replace", "rename", "wrap"]))
    if kind == "replace":
        node[last] = data.draw(VALUES)
    elif kind == "wrap":
        node[last] = [node[last], node[last]]
    else:
        value = node.pop(last)
        if kind == "rename" and isinstance(node, dict):
            node[data.draw(st.text(max_size=8))] = value
    return values


@hypothesis.settings(max_examples=600, deadline=None, database=None, derandomize=True)
@hypothesis.given(st.data())
def test_mutations_are_valid_or_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "mutations"
    if not folder.exists():
        folder.mkdir()
        for name, values in CONFIGS.items():
            (folder / name).write_text(json.dumps(values))
    values = copy.deepcopy(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))])
    for _ in range(data.draw(st.integers(1, 3))):
        if len(list(places(values))) > 1:
            values = mutate(data, values)
    path = folder / "mutated.json"
    path.write_text(json.dumps(values))
    try:
        found = config.load(path)
    except config.ConfigError as error:
        assert len(str(error).splitlines()) == 1
    else:
        # What is valid stays so, and the same, when it is written and read again.
        assert config.parse(json.loads(found.to_json()), source="written") == found


@pytest.mark.parametrize(
    "backbone, message",
    [
        (
            {"name": "resnet18", "variant": "v1c", "stem_channels": 65},
            r"cannot be built: `stem_channels` of a deep stem must be even",
        ),
        ({"name": "keras_cv", "class_name": "Nope"}, "has no backbone 'Nope'. Choose from"),
        (
            {"name": "keras_cv", "class_name": "EfficientNetLiteBackbone"},
            "EfficientNetLiteBackbone cannot be built",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_one_line(tmp_path, backbone, message):
    values = {"model": {"backbone": backbone, "head": {"name": "hrnet"}}}
    values |= {"data": {"dataset": "x", "crop_size": [32, 32], "batch_size": 1}}
    values |= {"name": "x", "train": {"steps": 1}}
    parsed = config.parse(values, source="x")
    with pytest.raises(UserError, match=message) as caught:
        Run(tmp_path, parsed, Classes(["a", "b"], [[0] * 3, [1] * 3])).build_segmenter()
    assert len(str(caught.value).splitlines()) == 1
