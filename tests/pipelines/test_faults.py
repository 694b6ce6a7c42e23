"""A prepared folder is damaged at random: what is read from it then is right, or an error."""

import json
import pathlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from pipelines import loader, verification
from pipelines.errors import DataError
from tests.pipelines.tiny_data import noise_example, write

ERRORS = (DataError, tf.errors.InvalidArgumentError)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder of six images in three shards, its files' contents, and what is read from it."""
    folder = tmp_path_factory.mktemp("sound")
    write(folder, [noise_example(i, (6, 9)) for i in range(6)], num_shards=3)
    contents = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    return folder, contents, read(folder)


def read(folder):
    return [
        {name: value.numpy() for name, value in batch.items()}
        for batch in loader.evaluation_dataset(folder, "train")
    ]


def flip_a_bit(data, contents):
    path = data.draw(st.sampled_from(sorted(contents)))
    place = data.draw(st.integers(0, 8 * len(contents[path]) - 1))
    content = bytearray(contents[path])
    content[place // 8] ^= 1 << place % 8
    return {path: bytes(content)}


def cut_off(data, contents):
    path = data.draw(st.sampled_from(sorted(contents)))
    return {path: contents[path][: data.draw(st.integers(0, len(contents[path]) - 1))]}


def overwrite(data, contents):
    """Some bytes in a row, the length as it was."""
    path = data.draw(st.sampled_from(sorted(contents)))
    new = data.draw(st.binary(min_size=1, max_size=40))
    place = data.draw(st.integers(0, len(contents[path]) - len(new)))
    return {path: contents[path][:place] + new + contents[path][place + len(new) :]}


def delete(data, contents):
    return {data.draw(st.sampled_from(sorted(contents))): None}


def exchange(data, contents):
    one, other = data.draw(st.permutations(shards(contents)))[:2]
    return {one: contents[other], other: contents[one]}


def repeat(data, contents):
    one, other = data.draw(st.permutations(shards(contents)))[:2]
    return {one: contents[other]}


def edit_the_manifest(data, contents):
    """One value of the manifest, wherever it is."""
    path = next(path for path in contents if path.name == "manifest.json")
    values = json.loads(contents[path])
    node = values
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    new = st.one_of(st.integers(0, 300), st.text(max_size=5), st.none())
    node[key] = data.draw(new.filter(lambda value: value != node[key]))
    return {path: json.dumps(values).encode()}


def shards(contents):
    return [path for path in sorted(contents) if path.suffix == ".tfrecord"]


DAMAGES = [flip_a_bit, cut_off, overwrite, delete, exchange, repeat, edit_the_manifest]
EXAMPLES = 30  # Of each: 210 in all.


@pytest.mark.parametrize("damage", DAMAGES)
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_never_a_silent_wrong_label(sound, damage, data):
    folder, contents, expected = sound
    changed = damage(data, contents)
    hypothesis.assume(any(content != contents[path] for path, content in changed.items()))
    try:
        for path, content in changed.items():
            pathlib.Path(path).unlink()
            if content is not None:
                path.write_bytes(content)
        try:
            found = read(folder)
        except ERRORS as error:
            named = [*(path.name for path in changed), "holds no prepared data"]
            assert any(name in str(error) for name in named)
        else:
            # Only what nobody reads may be changed: white space and what is derived.
            assert [path.name for path in changed] == ["manifest.json"]
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                for name, value in other.items():
                    np.testing.assert_array_equal(one[name], value)
    finally:
        for path in changed:
            path.write_bytes(contents[path])


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_verify_finds_everything(sound, data):
    folder, contents, _ = sound
    changed = data.draw(st.sampled_from([flip_a_bit, overwrite, exchange, repeat]))(data, contents)
    hypothesis.assume(any(content != contents[path] for path, content in changed.items()))
    hypothesis.assume(all(path.suffix == ".tfrecord" for path in changed))
    try:
        for path, content in changed.items():
            path.write_bytes(content)
        with pytest.raises(DataError) as error:
            verification.verify(folder, progress=False)
        assert any(path.name in str(error.value) for path in changed)
    finally:
        for path in changed:
            path.write_bytes(contents[path])
