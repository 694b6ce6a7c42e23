"""Damaged annotations of every format: a sound result or a DataError of one line, nothing else."""

import json
import random
import xml.etree.ElementTree as ElementTree

import pytest

from pipelines import datasets
from pipelines.datasets.importers import IMPORTERS
from pipelines.errors import DataError
from tests.pipelines.datasets import tiny_annotations
from tests.pipelines.tiny_data import all_labels

FORMATS = [*IMPORTERS, "huggingface", "joined"]
NUM_DAMAGES = 40
VALUES = (
    None, True, 0, -1, -3.5, 10**12, -(10**12), 10**30, 10**400, 1e300, float("inf"), float("nan"),
    "", "x", "\0", "7", "x" * 5000, [], [[]], [[], [1]], [None], ["x"], {}, {"x": 1},
)  # fmt: skip
TEXTS = (
    *("", "-1", "1.5", "1e300", "inf", "nan", "x", "9" * 400, "1,2;3", "\u00e9", "[", "{", "0x1"),
    *("2024-13-45", "!!int x", "&a [*a]", "~", "a: b: c", "\t"),
)


def places(content):
    """All `(container, key)` of a JSON value."""
    keys = content if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from places(content[key])


def damaged_json(content, rng):
    """Another type, a huge or negative number for a value, or a key or an entry less."""
    container, key = rng.choice(list(places(content)))
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container[key], (int, float)):
        container[key] *= rng.choice((-1, 10**6, 0.37, 1e30))
    elif kind == 2 and isinstance(container, list):
        container.append(container[key])
    else:
        container[key] = rng.choice(VALUES)
    return content


def damaged_xml(text, rng):
    """An attribute or text of another kind, or an element or attribute less."""
    root = ElementTree.fromstring(text.encode())
    elements = [(parent, child) for parent in root.iter() for child in parent]
    parent, element = rng.choice(elements)
    kind = rng.randrange(4)
    if kind == 0:
        parent.remove(element)
    elif kind == 1 or not element.attrib:
        element.text = rng.choice(TEXTS)
    else:
        name = rng.choice(sorted(element.attrib))
        element.attrib.pop(name) if kind == 2 else element.set(name, rng.choice(TEXTS))
    return ElementTree.tostring(root, encoding="unicode")


def damaged_words(text, rng):
    """One word replaced, removed or repeated."""
    words = text.split(" ")
    position = rng.randrange(len(words))
    words[position : position + 1] = rng.choice(
        ([], [rng.choice(TEXTS)], [rng.choice(TEXTS) + "\n"], 3 * words[position : position + 1])
    )
    return " ".join(words)


def damaged_bytes(content, rng):
    """Truncated, emptied, in another encoding, or with other bytes."""
    position = rng.randrange(len(content))
    flipped = bytearray(content)
    flipped[position] ^= rng.randrange(1, 256)
    kinds = [content[:position], b"", bytes(flipped), content[position:], bytes(len(content))]
    kinds.append(content[:position] + rng.randbytes(4) + content[position:])
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return rng.choice(kinds)
    kinds += [b"\xef\xbb\xbf" + content, text.encode("utf-16"), text.encode("utf-32")]
    # Bytes of Windows-1252 that are no UTF-8.
    kinds += [text.replace("a", "\u00e9").encode("cp1252"), text.encode("utf-16-be")]
    return rng.choice(kinds)


def damage(content, suffix, rng):
    """Damages a file's content, in its bytes or in its structure."""
    if rng.random() < 0.35 or suffix == ".parquet":
        return damaged_bytes(content, rng)
    text = content.decode()
    if suffix == ".json":
        return json.dumps(damaged_json(json.loads(text), rng)).encode()
    return (damaged_xml if suffix == ".xml" else damaged_words)(text, rng).encode()


def read(name, root):
    source = root / "sources.json" if name == "joined" else root
    return all_labels(datasets.get(name).find(source))


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_annotations(tmp_path, name):
    root = tmp_path / "set"
    root.mkdir()
    write = getattr(tiny_annotations, f"write_{name}")
    write(root / "x" if name in ("yolo", "supervisely") else root)
    ends = (".json", ".xml", ".yaml", ".txt", ".parquet")
    files = sorted(path for path in root.rglob("*") if path.suffix in ends)
    sound = read(name, root)
    assert sound
    num_errors = 0
    for seed in range(NUM_DAMAGES):
        rng = random.Random(f"{name} {seed}")
        file = rng.choice(files)
        content = file.read_bytes()
        file.write_bytes(damage(content, file.suffix, rng))
        try:
            read(name, root)
        except DataError as error:
            num_errors += 1
            assert str(error) and len(str(error).splitlines()) == 1, seed
        except Exception as error:
            raise AssertionError(f"seed {seed}: {file.name}: {file.read_bytes()[:400]}") from error
        finally:
            file.write_bytes(content)
    assert num_errors > NUM_DAMAGES // 4  # The damage is felt.
    again = read(name, root)
    assert {split: [*part] for split, part in again.items()} == {
        split: [*part] for split, part in sound.items()
    }
