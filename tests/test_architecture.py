"""The arrows between packages, as docs/architecture.md draws them."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
GROUND = {
    *(
        "config",
        "display",
        "dotted",
        "errors",
        "files",
        "pixel_depth",
        "pixel_format",
        "progress",
        "quiet",
    ),
    *("classes", "import_hook"),
    *("json_text", "registration", "waiting"),
}
ALLOWED = {
    "backend": set(),
    "layers": {"backend"},
    "losses": {"backend", "layers"},
    "metrics": {"losses"},
    "contrast": {"backend", "layers", "losses"},
    "backbones": {"backend", "layers"},
    "heads": {"backend", "layers"},
    "segmenters": {"backend", "layers", "backbones", "heads"},
    "weights": {"backbones", "layers", "segmenters", "backend"},
    "runs": {"backend", "segmenters", "weights"},
    "evaluation": {"backend", "layers", "runs", "segmenters", "weights"},
    "training": {
        *(
            "backend",
            "layers",
            "losses",
            "metrics",
            "contrast",
            "backbones",
            "segmenters",
            "weights",
            "runs",
            "evaluation",
        )
    },
    "serving": {"runs", "segmenters", "evaluation", "metrics", "backend", "layers"},
    "analysis": {"evaluation", "layers", "segmenters", "runs", "backend", "contrast"},
    "studies": {"evaluation", "analysis"},
}
# Of all that lies below `training` only these import TensorFlow.
TENSORFLOW = {"backend", "training", "evaluation", "serving", "analysis", "commands"}

# Flags of other programs, and custom properties of style sheets.
OTHER_FLAGS = {
    "beam.py": {"--runner", "--direct_num_workers"},
    "environment.py": {"--porcelain", "--untracked-files"},
    "report.py": {"--heat", "--columns"},
    "server.py": {"--data-binary"},  # Of curl.
}


def modules():
    return sorted((ROOT / "kseg").rglob("*.py"))


def package(path):
    parts = path.relative_to(ROOT / "kseg").with_suffix("").parts
    return parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "kseg":
                yield from (f"kseg.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("name", sorted({package(path) for path in modules()} - {"__init__"}))
def test_arrows(name):
    assert name in GROUND or name in ALLOWED or name == "commands", "a new package: draw its arrows"
    found = set()
    for path in modules():
        if package(path) != name:
            continue
        for module in imported(path):
            top, *rest = module.split(".")
            if top == "tensorflow":
                assert name in TENSORFLOW, f"{path} imports TensorFlow"
            if top == "pipelines":
                assert name == "commands", f"{path} imports pipelines"
            if top == "kseg" and rest:
                found.add(rest[0])
    below = found - {name} - GROUND
    if name in GROUND - {"registration"}:
        assert not below
    elif name in ALLOWED:
        assert below <= ALLOWED[name]


def test_pipelines_import_no_keras_and_little_of_kseg():
    for path in (ROOT / "pipelines").rglob("*.py"):
        for module in imported(path):
            assert module.split(".")[0] != "keras", path
            if module.startswith("kseg."):
                assert module.split(".")[1] in GROUND, f"{path} imports {module}"


def test_only_commands_name_scripts_and_flags():
    """Other modules name arguments by `kseg.errors.option`, which the commands show as flags."""
    for path in [*modules(), *(ROOT / "pipelines").rglob("*.py")]:
        if path.is_relative_to(ROOT / "kseg/commands"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"scripts/\w+\.py", node.value), f"{path}: {node.value}"
                flags = set(re.findall(r"(?<![\w\[-])--[a-z][a-z_-]+", node.value))
                assert flags <= OTHER_FLAGS.get(path.name, set()), f"{path}: {node.value}"


def test_the_page_names_every_package():
    page = (ROOT / "docs/architecture.md").read_text()
    for name in {package(path) for path in modules()} - {"__init__", "registration"}:
        assert f"`{name}`" in page or f" {name} " in page or f" {name}," in page, name
