import json

import cv2
import keras
import numpy as np
import pytest

from kseg import export
from kseg.errors import UserError
from kseg.evaluation.metrics import Scores
from kseg.segmenters import inference_model
from kseg.training import distribution
from pipelines import loader
from pipelines.errors import DataError
from tests.scripts.tiny_run import NAMES, script, write_data
from tests.scripts.tiny_run import tiny_run as tiny_run

evaluate = script("evaluate")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(
        distribution, "build_strategy", lambda: distribution.tf.distribute.get_strategy()
    )


def expected_scores(run, split="val", checkpoint="best"):
    """Counts the pixels of each image on its own."""
    model = inference_model(run.segmenter(checkpoint))
    matrix = np.zeros((3, 3), "int64")
    for batch in loader.evaluation_dataset(run.config.data.folder, split):
        labels = batch["label"][0].numpy()
        found = np.argmax(model(batch["image"])[0], axis=-1)
        known = labels < 3
        np.add.at(matrix, (labels[known], found[known]), 1)
    return Scores(matrix)


def assert_close(found, expected):
    """Graphs round differently from eager layers: a pixel may change sides."""
    moved = np.abs(np.array(found) - expected.matrix).sum() / 2
    assert moved <= 1e-3 * expected.matrix.sum()


def call(*arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 0


def test_run(tiny_run, capsys):
    call("--run", tiny_run.path)
    expected = expected_scores(tiny_run)
    found = json.loads((tiny_run.path / "evaluation" / "val.json").read_text())
    assert_close(found["confusion_matrix"], expected)
    scores = Scores(np.array(found["confusion_matrix"]))
    np.testing.assert_allclose(found["mean_iou"], scores.mean_iou)
    assert (expected.matrix.sum(0) > 0).sum() > 1, "the test would be weak"
    assert (found["num_images"], found["split"], found["checkpoint"]) == (3, "val", "best")
    assert found["images_per_second"] > 0
    printed = capsys.readouterr().out
    assert scores.table(NAMES) in printed
    assert str(tiny_run.path / "evaluation" / "val.json") in printed


def test_two_devices_give_the_same_scores(tiny_run, monkeypatch, mirrored):
    monkeypatch.setattr(distribution, "build_strategy", lambda: mirrored)
    call("--run", tiny_run.path)
    found = json.loads((tiny_run.path / "evaluation" / "val.json").read_text())
    assert_close(found["confusion_matrix"], expected_scores(tiny_run))


def test_other_checkpoint_and_split(tiny_run):
    call("--run", tiny_run.path, "--checkpoint", 7, "--split", "test")
    found = json.loads((tiny_run.path / "evaluation" / "test-7.json").read_text())
    expected = expected_scores(tiny_run, "test", "7")
    assert_close(found["confusion_matrix"], expected)
    assert found["images_per_second"] is None, "a single batch has no speed"
    with pytest.raises(AssertionError):
        assert_close(found["confusion_matrix"], expected_scores(tiny_run, "test"))


def test_other_data_set_has_its_own_file(tiny_run, tmp_path):
    folder = write_data(tmp_path / "data", sizes=[(20, 30)])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "dataset": "other"}))
    call("--run", tiny_run.path, "--data", folder)
    found = json.loads((tiny_run.path / "evaluation" / "other-val.json").read_text())
    assert (found["dataset"], found["num_images"]) == ("other", 1)


def test_saved_model_scores_as_the_run(tiny_run, tmp_path):
    export.export(tiny_run.segmenter(), tmp_path / "model", tiny_run.classes)
    data, output = tiny_run.config.data.folder, tmp_path / "scores.json"
    call("--run", tiny_run.path)
    of_run = json.loads((tiny_run.path / "evaluation" / "val.json").read_text())
    call("--saved-model", tmp_path / "model", "--data", data, "--output", output)
    found = json.loads(output.read_text())
    np.testing.assert_allclose(found["mean_iou"], of_run["mean_iou"], atol=1e-6)
    assert found["checkpoint"] is None


def test_saved_model_writes_nothing_unless_asked(tiny_run, tmp_path, capsys):
    image = keras.Input((None, None, 3))
    model = keras.Model(image, {"logits": keras.layers.Conv2D(3, 1)(image)})
    export.export(model, tmp_path / "model", tiny_run.classes)
    call("--saved-model", tmp_path / "model", "--data", tiny_run.config.data.folder)
    assert "mean" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_panels_replace_earlier_ones(tiny_run, tmp_path):
    output = tmp_path / "scores.json"
    call("--run", tiny_run.path, "--output", output, "--panels", 3)
    call("--run", tiny_run.path, "--output", output, "--panels", 2)
    names = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert names == ["confusion.png", "panel-000.png", "panel-001.png"]
    for name in names:
        assert cv2.imread(str(tmp_path / "scores" / name)).size


def test_more_panels_than_images(tiny_run, tmp_path):
    call("--run", tiny_run.path, "--output", tmp_path / "scores.json", "--panels", 10)
    assert len(list((tmp_path / "scores").glob("panel-*.png"))) == 3


@pytest.mark.parametrize(
    "names, message",
    [
        (["sky", "road", "car", "tree"], r"must have the 3 classes of the model\. .* has 4"),
        (["road", "sky", "car"], "Class 0 is 'sky' in the model and 'road' in"),
    ],
)
def test_refuses_data_of_other_classes(tiny_run, tmp_path, names, message):
    folder = write_data(tmp_path / "data", names, sizes=[(20, 30)])
    with pytest.raises(UserError, match=message):
        call("--run", tiny_run.path, "--data", folder)


def test_names_what_is_missing(tiny_run, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        call("--run", tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint '9'\. It has: best, 7"):
        call("--run", tiny_run.path, "--checkpoint", 9)
    with pytest.raises(DataError, match=r"no split 'train'\. It has: val, test"):
        call("--run", tiny_run.path, "--split", "train")
    with pytest.raises(DataError, match="holds no prepared data"):
        call("--run", tiny_run.path, "--data", tmp_path)
    with pytest.raises(UserError, match="There is no SavedModel"):
        call("--saved-model", tmp_path / "model", "--data", tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--run --saved-model --compare is required"),
        (["--run", "a", "--saved-model", "b"], "not allowed with"),
        (["--saved-model", "a"], "--saved-model needs --data"),
        (["--saved-model", "a", "--data", "b", "--checkpoint", "best"], "go with --run"),
        (["--saved-model", "a", "--data", "b", "--panels", "2"], "needs --output"),
        (["--run", "a", "--panels", "0"], "must be positive, is 0"),
        (["--run", "a", "--output", "scores"], "must end in .json, is scores"),
    ],
)
def test_refuses_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
