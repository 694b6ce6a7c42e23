"""`kseg push` and `kseg.from_preset`, through a stand-in for the hub and through folders."""

import json
import re
import shutil
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import yaml

import kseg
from kseg import backbones
from kseg.commands import evaluate, export, push
from kseg.errors import UnavailableError, UserError
from kseg.runs import Run
from kseg.runs.model_card import model_card
from kseg.runs.presets import OPTIONAL, REQUIRED, fetch_preset
from kseg.weights.hub import upload_folder
from tests.commands import hub_server
from tests.commands.tiny_run import NAMES, tiny_run  # noqa: F401
from tests.tiny_networks import tiny_backbone

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3)).astype("uint8")
FILES = {*REQUIRED, "scores.json", "README.md"}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):  # noqa: F811
    """A run with scores of its best weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)
        evaluate.main(["--run", str(tiny_run.path)])
    return tiny_run


@pytest.fixture(scope="module")
def preset(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    push.main([str(run.path), str(folder), "--license", "cc-by-4.0"])
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = huggingface_hub.constants
    with hub_server.serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # The stand-in has LFS only.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield hub


def same(model, run):
    expected = run.segmenter("best")
    got = {w.path: w.numpy() for w in model.preset.segmenter.weights}
    assert got.keys() == {w.path for w in expected.weights}
    for weight in expected.weights:
        np.testing.assert_array_equal(got[weight.path], weight.numpy())
    logits = model.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(logits, kseg.inference_model(expected).predict(IMAGES, verbose=0))
    assert logits.shape == (2, 40, 56, 3)


def test_a_folder_read_back_is_equal(run, preset):
    assert {path.name for path in preset.iterdir()} == FILES
    model = kseg.from_preset(preset)
    same(model, run)
    assert model.classes == run.classes
    assert model.preset.run.config.model == run.config.model
    assert model.preset.run.config.train == run.config.train
    file = json.loads((run.path / "evaluation/val.json").read_text())
    file.pop("image_counts_sha256")
    assert model.preset.scores == file


def test_the_folder_names_no_path_of_the_machine(run, preset):
    for name in FILES - {"model.weights.h5", "README.md"}:
        assert str(run.path.parent) not in (preset / name).read_text(), name
    assert json.loads((run.path / "config.json").read_text())["data"]["path"]
    assert json.loads((preset / "config.json").read_text())["data"]["path"] is None


def test_the_model_card(run, preset, monkeypatch):
    _, head, text = (preset / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(head)
    scores = json.loads((preset / "scores.json").read_text())
    assert metadata["license"] == "cc-by-4.0" and metadata["library_name"] == "kseg"
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(scores["mean_iou"], 4)
    for name in NAMES:
        assert f"| {name} | {100 * scores['classes'][name]['iou']:.1f} |" in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippet.splitlines()) == 3
    names = {"images": IMAGES}
    assert str(preset.parent) not in text  # The folders of this machine are not shared.
    monkeypatch.chdir(preset.parent)
    exec(snippet, names)
    assert names["labels"].shape == IMAGES.shape[:3]


def test_code_of_a_preset_is_not_run_by_commands(preset, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(preset, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["backbone"] = {"name": "os:getcwd"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"names code outside kseg, 'os:getcwd', which would be"):
        export.main(["--run", str(folder), "--output", str(tmp_path / "model")])


def test_a_preset_is_evaluated_and_damaged_scores_are_one_line(preset, tmp_path, run):
    folder = tmp_path / "preset"
    shutil.copytree(preset, folder)
    output = tmp_path / "scores.json"
    arguments = ["--run", folder, "--data", run.config.data.folder, "--output", output]
    assert evaluate.main([*map(str, arguments)]) == 0
    assert json.loads(output.read_text())["checkpoint"] == "best"
    for text in ("{broken", "[]"):
        (folder / "scores.json").write_text(text)
        with pytest.raises(UserError, match=r"scores.json is damaged"):
            push.push(folder, tmp_path / "again")


def test_the_model_card_of_other_channels(preset):
    opened = Run.open(preset)
    scores = json.loads((preset / "scores.json").read_text())
    lists = {key: [1.0, 2.0, 3.0, 4.0] for key in ("mean", "std", "minimum", "maximum")}
    pixels = {"channels": 4, "dtype": "uint16", "value_range": [0, 4095], **lists}
    data = {"splits": {}, "pixels": pixels}
    text = model_card(
        opened.config, opened.classes, data, scores, license="unknown", source="hf://a/b"
    )
    assert "# From uint16 (batch, height, width, 4), values 0 to 4095." in text
    assert "Not stated by the author" in text


def test_the_folder_is_a_run(preset, tmp_path):
    opened = Run.open(preset)  # As `--run` of the other commands opens it.
    assert opened.checkpoint("best").name == "model.weights.h5"
    push.push(preset, tmp_path / "again")  # It can be pushed on.
    assert (tmp_path / "again/scores.json").read_text() == (preset / "scores.json").read_text()


def test_through_the_hub(run, preset, hub):
    push.main([str(run.path), "hf://owner/tiny", "--license", "apache-2.0", "--private"])
    assert hub.private == {"owner/tiny": True}
    (_, _), (commit, files) = hub.commits["owner/tiny"]
    assert set(files) == FILES and "model.weights.h5" in hub.by_lfs
    assert b"license: apache-2.0" in files["README.md"]
    assert b"kseg.from_preset('hf://owner/tiny')" in files["README.md"]
    same(kseg.from_preset("hf://owner/tiny"), run)

    # A second push is another commit; a revision pins the first.
    upload_folder(preset, "hf://owner/tiny")
    (newest, files) = hub.commits["owner/tiny"][-1]
    assert newest != commit and b"license: cc-by-4.0" in files["README.md"]
    assert fetch_preset(f"hf://owner/tiny@{commit}").name == commit
    assert fetch_preset("hf://owner/tiny").name == newest

    # It is weights to start from, too, with a classifier for other classes.
    other = Run(run.path, run.config, type(run.classes)(["a", "b"], [[0] * 3, [9] * 3]))
    segmenter = other.build_segmenter()
    report = kseg.load_weights(segmenter, "hf://owner/tiny")
    assert {path.split("/")[0] for path in report.missing} == {"ocr_logits", "ocr_aux_logits"}


def test_without_network_the_cached_preset_is_used(preset, hub, monkeypatch):
    upload_folder(preset, "hf://owner/tiny")
    folder = fetch_preset("hf://owner/tiny")
    assert {path.name for path in folder.iterdir()} == FILES - {"README.md"}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch_preset("hf://owner/tiny") == folder
    with pytest.raises(UnavailableError, match=r"Download config\.json, .* of owner/other"):
        kseg.from_preset("hf://owner/other")


def test_what_the_hub_refuses_is_one_line(run, preset, hub, monkeypatch, tmp_path):
    with pytest.raises(UnavailableError, match="hf://owner/none is not available: "):
        kseg.from_preset("hf://owner/none")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UnavailableError, match="hf://owner/tiny is not available: ") as caught:
        upload_folder(preset, "hf://owner/tiny")
    assert "\n" not in str(caught.value) and hub.commits == {}
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    card = (preset / "README.md").read_bytes().replace(b"license: cc-by-4.0", b"license: mine")
    with pytest.raises(UserError, match=r'hf://owner/tiny is refused: .*"license" must be known'):
        upload_folder(copy(preset, tmp_path / "mine", README=card), "hf://owner/tiny")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UnavailableError, match=r"needs a token.*hf auth login"):
        push.push(run.path, "hf://owner/tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r"pip install 'kseg\[hub\]'"):
        push.push(run.path, "hf://owner/tiny")


def test_mistakes(run, preset, tmp_path):
    for source in ("hf://owner", "hf://owner/name/file"):
        with pytest.raises(UserError, match="must be hf://owner/name"):
            kseg.from_preset(source)
    with pytest.raises(UserError, match="must hold config"):
        kseg.from_preset(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        push.push(run.path, preset)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"also holds 'thesis\.txt'"):
        push.push(run.path, tmp_path, overwrite=True)
    for target, more in (
        ("s3://bucket/x", {}),
        ("hf://owner/name", {"overwrite": True}),
        (tmp_path / "x", {"private": True}),
        (tmp_path / "x", {"license": ""}),
    ):
        with pytest.raises(UserError):
            push.push(run.path, target, **more)
    assert not (tmp_path / "x").exists()


def copy(preset, folder, **changes):
    folder.mkdir()
    for path in preset.iterdir():
        (folder / path.name).write_bytes(changes.get(path.name.split(".")[0], path.read_bytes()))
    return folder


def test_damaged_presets(preset, tmp_path):
    cut = (preset / "model.weights.h5").read_bytes()[:-2000]
    with pytest.raises(UserError, match=r"model\.weights\.h5 is damaged"):
        kseg.from_preset(copy(preset, tmp_path / "cut", model=cut))
    with pytest.raises(UserError, match=r"scores\.json is damaged"):
        kseg.from_preset(copy(preset, tmp_path / "scores", scores=b"{"))
    with pytest.raises(UserError, match=r"config\.json"):
        kseg.from_preset(copy(preset, tmp_path / "config", config=b"{"))


def test_code_that_a_preset_names_is_not_run(preset, tmp_path):
    config = json.loads((preset / "config.json").read_text())
    config["model"]["head"] = {"name": "os:getcwd", "arguments": {}}
    folder = copy(preset, tmp_path / "code", config=json.dumps(config).encode())
    with pytest.raises(UserError, match=r"names code outside kseg, 'os:getcwd'.*allow_code"):
        kseg.from_preset(folder)


def test_a_training_does_not_destroy_a_preset(run, preset):
    before = sorted(path.name for path in preset.iterdir())
    with pytest.raises(UserError, match=r"holds a preset.*model\.weights="):
        Run.create(preset, run.config, run.classes)
    with pytest.raises(UserError, match="holds a preset"):
        Run.delete(preset)
    assert sorted(path.name for path in preset.iterdir()) == before


def test_scores_of_other_weights_are_refused(run, tmp_path, monkeypatch):
    from kseg.runs import checkpoints, presets

    scores = json.loads((run.path / "evaluation/val.json").read_text())
    with pytest.raises(UserError, match="checkpoint 'latest'"):
        presets.write_preset(run, tmp_path / "x", {**scores, "checkpoint": "latest"})
    with pytest.raises(UserError, match="classes"):
        presets.write_preset(run, tmp_path / "x", {**scores, "classes": {"a": {}}})
    other = scores["mean_iou"] + 0.1
    monkeypatch.setattr(checkpoints, "restore", lambda *arguments: {"mean_iou": other})
    with pytest.raises(UserError, match=f"other weights: .* best weights {other:.4f}"):
        presets.write_preset(run, tmp_path / "x", scores)
    assert not (tmp_path / "x").exists() and set(OPTIONAL) >= {"scores.json"}
