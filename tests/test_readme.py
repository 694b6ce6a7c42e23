"""README.md and the other pages at the top: length, links, commands; CI runs the blocks."""

import ast
import pathlib
import re
import shlex

import pytest

import kseg
from kseg import config
from kseg.commands import predict, prepare, train

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_starts_with_two_commands_and_is_short():
    assert len(README.splitlines()) <= 150
    blocks = re.findall(r"^    (\S.*)$", README, flags=re.MULTILINE)
    assert blocks[0].startswith("pip install -e . && python scripts/train.py")
    assert blocks[1] == 'pip install -e ".[test]" && pytest'


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def commands():
    """Returns the arguments of each command of the README by the name of its script."""
    lines = re.sub(r" \\\n +", " ", README)
    found = re.findall(r"python scripts/(\w+)\.py (.*?)(?:`|$)", lines, flags=re.MULTILINE)
    return [(name, shlex.split(arguments)) for name, arguments in found]


def test_commands_parse_and_their_configs_exist():
    parsers = {"prepare_data": prepare, "train": train, "predict": predict}
    assert {name for name, _ in commands()} >= parsers.keys()
    for name, arguments in commands():
        if name in parsers:
            options = parsers[name].parse_arguments(arguments)
        if name == "train":
            config.load(ROOT / options.config, options.overrides)


def test_the_python_block_uses_public_names():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    tree = ast.parse(block)
    names = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "kseg"
    ]
    assert names and set(names) <= set(kseg.__all__)
