"""docs/tutorial.ipynb, executed with a few steps of a tiny network."""

import pathlib
import re

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"
TINY = """num_images = 6
steps = 2
size = (64, 64)
backbone = {"name": "tests.tiny_networks:tiny_resnet"}"""


def test_from_images_to_a_served_model(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    names = re.findall(r"^(\w+) = ", cell.source, flags=re.MULTILINE)
    assert names == re.findall(r"^(\w+) = ", TINY, flags=re.MULTILINE)
    cell.source = TINY
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert "mean IoU 0." in "".join(o.get("text", "") for c in code for o in c.outputs)
    # Three pictures are shown, and the server predicts what the model does.
    shown = [o for c in code for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(shown) == 3
    assert code[-1].outputs[-1].data["text/plain"] == "(0, True)"
    assert not (tmp_path / "tutorial/run/train.lock").exists()


def test_it_is_stored_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or not (cell.outputs or cell.execution_count)


def test_its_links():
    text = NOTEBOOK.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
