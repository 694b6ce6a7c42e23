"""The pages in docs/, against the code that they describe."""

import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest

from kseg import config
from kseg.commands.prepare import SOURCES
from kseg.config import schema
from kseg.studies.design import load_plan

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
METHODS = {
    "multi_scale.md": schema.MultiScale,
    "region_contrast.md": schema.RegionContrast,
    "contextrast.md": schema.Contextrast,
    "pixel_contrast.md": schema.PixelContrast,
}
LOSSES = {
    "cross_entropy": schema.CrossEntropy,
    "auxiliary": schema.Loss,
    "ohem": schema.OHEM,
    "lovasz": schema.Lovasz,
    "dice": schema.Dice,
    "focal": schema.Focal,
    "rmi": schema.RMI,
    "affinity": schema.Affinity,
}


def blocks(text, language):
    """The contents of fenced blocks, also of indented ones."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def switches(text):
    """dict from key to default of a page's table; values as JSON has them."""
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \| \S", text, flags=re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {key: json.loads(default) for key, default in rows}


def defaults(section):
    """dict from key to default of a section, but for its name; values as JSON has them."""
    fields = {key: field for key, field in section.model_fields.items() if key != "name"}
    return json.loads(json.dumps({key: field.default for key, field in fields.items()}))


STUDIES = blocks(PAGES["studies.md"], "json")
SNIPPETS = [
    (page, text)
    for page in PAGES
    for text in blocks(PAGES[page], "json")
    if text not in STUDIES and page != "extending.md"
]
PYTHON = [
    (page, text)
    for page in PAGES
    for text in blocks(PAGES[page], "python")
    if page not in ("your_own_data.md", "extending.md", "keras.md", "serving.md")  # Other tests.
]


@pytest.mark.parametrize("page", METHODS)
def test_every_switch_and_its_default(page):
    assert switches(PAGES[page]) == defaults(METHODS[page])
    assert f"`{page.removesuffix('.md')}`" in PAGES[page]  # Its name in a config.


def test_every_switch_of_the_losses():
    assert LOSSES.keys() == schema.Losses.model_fields.keys()
    expected = {f"{name}.{k}": v for name in LOSSES for k, v in defaults(LOSSES[name]).items()}
    # The one loss whose weight has another default where it stands.
    expected["auxiliary.weight"] = schema.Losses().auxiliary.weight
    assert switches(PAGES["losses.md"]) == expected


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_configs(page, text, tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    snippet = {"extends": "quickstart.json", **json.loads(text)}
    path = tmp_path / "configs/snippet.json"
    path.write_text(json.dumps(snippet))
    found = config.load(path)
    for objective in snippet.get("contrast", []):
        assert objective["name"] in [o.name for o in found.contrast]


@pytest.mark.parametrize("text", STUDIES)
def test_studies(text, tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "configs/quickstart.json", tmp_path / "configs/my_experiment.json")
    (tmp_path / "configs/studies").mkdir(exist_ok=True)
    path = tmp_path / "configs/studies/snippet.json"
    path.write_text(text)
    plan = load_plan(path)
    assert [objective.name for objective in plan.experiments["mscs"].contrast] == ["multi_scale"]


@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_python(page, text):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (2, 2, 3)), np.ones((16, 16), int))
    outputs = {"features": rng.normal(size=(2, 8, 12, 6)), "logits": rng.normal(size=(2, 8, 12, 3))}
    for stage, size in {"c2": 8, "c3": 4, "c4": 4, "c5": 4, "features": 8}.items():
        embeddings = rng.normal(size=(2, size, size * 3 // 2, 5))
        outputs[f"embedding_{stage}"] = embeddings / np.linalg.norm(
            embeddings, axis=-1, keepdims=True
        )
    outputs = {key: keras.ops.convert_to_tensor(x, "float32") for key, x in outputs.items()}
    anchors = keras.utils.normalize(rng.normal(size=(10, 4)))
    names = {"num_classes": 3, "labels": labels, "outputs": outputs, "logits": outputs["logits"]}
    names |= {"anchors": anchors, "keys": anchors}
    names |= {"anchor_labels": np.arange(10) % 3, "key_labels": np.arange(10) % 3}
    exec(text, names)
    terms = names.get("terms") or {k: names.get(k) for k in ("plain", "hard", "lovasz", "loss")}
    values = [np.asarray(x) for x in terms.values() if x is not None]
    assert values or page in ("recipe.md", "training.md")  # Which make no loss.
    assert all(np.isfinite(x).all() for x in values)
    # A memory is empty at first, and has something to say to the next batch.
    if "found" in names and names["objective"].bank is not None:
        terms, _ = names["objective"].contrast(outputs, labels)
        assert all(float(x) > 0 for x in terms.values())
    else:
        assert all(np.min(x) > 0 for x in values)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files(page):
    text = PAGES[page]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / "docs" / name).resolve() if name else ROOT / "docs" / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target
    for name in re.findall(r"`(configs/[\w/.]+\.(?:json|md))`", text):
        # `mine.json` is the user's.
        assert name == "configs/mine.json" or (ROOT / name).exists(), name


def test_the_index_names_every_page():
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in PAGES["README.md"]


def test_the_data_sets_on_the_page_of_data_are_those_of_the_command():
    sentence = re.search(r"`NAME` is (.*?)lists them", PAGES["data.md"], re.S)[1]
    names = set(re.findall(r"`([a-z]\w+)`", sentence))
    assert {"cityscapes", "folder", "synthetic"} < names
    assert names <= {*SOURCES, "synthetic"}
