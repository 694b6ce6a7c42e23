import csv
import json
import zipfile

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import serving
from kseg.commands import evaluate
from kseg.errors import UserError
from kseg.evaluation import results
from kseg.evaluation.boundary_iou import BoundaryIou
from kseg.evaluation.image_counts import ImageCounts
from kseg.evaluation.metrics import Scores
from kseg.evaluation.sliding_window import SlidingWindow
from kseg.segmenters import inference_model
from kseg.training import distribution
from pipelines import loader
from pipelines.datasets.dataset import Taxonomy
from pipelines.errors import DataError
from tests.commands.tiny_run import NAMES, PALETTE, write_data
from tests.commands.tiny_run import tiny_run as tiny_run
from tests.evaluation.cityscapes import fake_cityscapes


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
    folder = write_data(tmp_path / "data", sizes=[(20, 30)], dataset="other")
    call("--run", tiny_run.path, "--data", folder)
    found = json.loads((tiny_run.path / "evaluation" / "other-val.json").read_text())
    assert (found["dataset"], found["num_images"]) == ("other", 1)


@pytest.fixture(scope="module")
def saved_model(tiny_run, tmp_path_factory):
    """The tiny run's network, exported."""
    path = tmp_path_factory.mktemp("exported") / "model"
    serving.export_saved_model(tiny_run.segmenter(), path, tiny_run.classes)
    return path


@pytest.fixture(scope="module")
def small_model(tiny_run, tmp_path_factory):
    """A SavedModel that says which colour is strongest, for what needs no network."""
    path = tmp_path_factory.mktemp("small") / "model"
    image = keras.Input((None, None, 3))
    model = keras.Model(image, {"logits": keras.layers.Conv2D(3, 1, use_bias=False)(image)})
    model.set_weights([np.eye(3)[None, None]])
    serving.export_saved_model(model, path, tiny_run.classes)
    return path


def test_saved_model_scores_as_the_run(tiny_run, saved_model, tmp_path):
    data, output = tiny_run.config.data.folder, tmp_path / "scores.json"
    call("--run", tiny_run.path)
    of_run = json.loads((tiny_run.path / "evaluation" / "val.json").read_text())
    call("--saved-model", saved_model, "--data", data, "--output", output)
    found = json.loads(output.read_text())
    np.testing.assert_allclose(found["mean_iou"], of_run["mean_iou"], atol=1e-6)
    assert found["checkpoint"] is None


def test_saved_model_writes_nothing_unless_asked(tiny_run, small_model, capsys):
    call("--saved-model", small_model, "--data", tiny_run.config.data.folder)
    assert "mean" in capsys.readouterr().out
    assert [path.name for path in small_model.parent.iterdir()] == ["model"]


def by_loop(run, window, scales):
    """Scores through windows and sizes, each image and each view on its own."""
    model = inference_model(run.segmenter())
    matrix = np.zeros((3, 3), "int64")
    for batch in loader.evaluation_dataset(run.config.data.folder, "val"):
        image, labels = batch["image"].numpy().astype("float32"), batch["label"][0].numpy()
        total = 0
        for scale in scales:
            height, width = (int(size * scale + 0.5) for size in labels.shape)
            view = cv2.resize(image[0], (width, height))
            for turn in (1, -1):
                seen = view[None, :, ::turn]
                logits = SlidingWindow(model, 3, window, overlap=0.5, batch_size=32)(seen).numpy()[
                    0
                ]
                logits = cv2.resize(logits[:, ::turn], labels.shape[::-1])
                total = total + tf.nn.softmax(logits).numpy()
        known = labels < 3
        np.add.at(matrix, (labels[known], total.argmax(-1)[known]), 1)
    return Scores(matrix)


def test_windows_scales_and_mirroring(tiny_run):
    modes = ["--sliding-window", 24, 32, "--overlap", 0.5, "--scales", 0.5, 1.25, "--flip"]
    call("--run", tiny_run.path, *modes, "--batch-size", 3)
    file = tiny_run.path / "evaluation" / "val-sliding-ms-flip.json"
    found = json.loads(file.read_text())
    assert_close(found["confusion_matrix"], by_loop(tiny_run, (24, 32), (0.5, 1.25)))
    assert (found["window"], found["overlap"]) == ([24, 32], 0.5)
    assert (found["scales"], found["flip"]) == ([0.5, 1.25], True)
    rows = list(csv.DictReader(file.with_suffix(".csv").open()))
    assert [row["name"] for row in rows[:3]] == NAMES
    assert float(rows[0]["iou"]) == found["classes"]["sky"]["iou"]
    assert len(list((tiny_run.path / "tensorboard" / f"evaluate-{file.stem}").iterdir())) == 1
    with pytest.raises(AssertionError):
        assert_close(found["confusion_matrix"], expected_scores(tiny_run))


def test_window_of_the_run_on_a_saved_model(tiny_run, saved_model, tmp_path):
    data, output = tiny_run.config.data.folder, tmp_path / "scores.json"
    of_model = ["--saved-model", saved_model, "--data", data, "--output", output]
    call(*of_model, "--sliding-window", 32, 32)
    windows = json.loads(output.read_text())["confusion_matrix"]
    call("--run", tiny_run.path, "--sliding-window")
    found = json.loads((tiny_run.path / "evaluation" / "val-sliding.json").read_text())
    assert found["window"] == [32, 32]
    assert_close(found["confusion_matrix"], Scores(np.array(windows)))
    with pytest.raises(AssertionError):
        assert_close(windows, expected_scores(tiny_run))


@pytest.fixture(scope="module")
def cityscapes_data(tmp_path_factory):
    """The tiny run's images under names of Cityscapes, and their annotation."""
    return write_data(
        tmp_path_factory.mktemp("cityscapes") / "data",
        dataset="cityscapes",
        categories={"ground": [0, 1], "vehicle": [2]},
        groups={"rare": [2]},
    )


@pytest.fixture
def frames(monkeypatch):
    """Names the records of the data as frames."""
    plain = loader.evaluation_dataset

    def renamed(*arguments, **options):
        dataset = plain(*arguments, **options)
        return dataset.map(
            lambda b: {**b, "id": tf.strings.join(["ulm_000000_00000", b["id"], "_leftImg8bit"])}
        ).apply(tf.data.experimental.assert_cardinality(int(dataset.cardinality())))

    monkeypatch.setattr(loader, "evaluation_dataset", renamed)
    taxonomy = Taxonomy(fake_cityscapes.NAMES, PALETTE, fake_cityscapes.LABEL_MAP)
    monkeypatch.setattr(Taxonomy, "load", classmethod(lambda cls, name: taxonomy))


def test_scores_of_cityscapes(small_model, tmp_path, cityscapes_data, frames, capsys):
    for batch in loader.evaluation_dataset(cityscapes_data, "val"):
        frame = batch["id"][0].numpy().decode().removesuffix("_leftImg8bit")
        labels = batch["label"][0].numpy()
        fake_cityscapes.write_annotation(tmp_path / "gtFine", frame, labels, labels == 2)
    arguments = ["--saved-model", small_model, "--data", cityscapes_data, "--boundary", 0.01]
    arguments += ["--output", tmp_path / "scores.json", "--submission", tmp_path / "test.zip"]
    call(*arguments, "--cityscapes-ground-truth", tmp_path / "gtFine")
    found = json.loads((tmp_path / "scores.json").read_text())
    scores, official = Scores(np.array(found["confusion_matrix"])), found["cityscapes"]
    # The official names differ from those of this test's classes, but not their regular ids.
    ious = [official["classes"][name]["iou"] for name in ("road", "sky", "car")]
    np.testing.assert_allclose(ious, scores.iou)
    assert 0 < official["classes"]["car"]["iiou"] < 1
    ground = scores.category_iou({"ground": [0, 1]})["ground"]
    assert found["categories"]["ground"] == ground
    assert found["groups"]["rare"] == scores.iou[2]
    assert found["dilation_ratio"] == 0.01
    printed = capsys.readouterr().out
    assert f"ground  {100 * ground:>24.2f}".replace(" ", "") in printed.replace(" ", "")
    assert "iIoU" in printed and "boundary IoU" in printed

    boundary, matrix = BoundaryIou(3, 0.01), np.zeros((3, 3), "int64")
    with zipfile.ZipFile(tmp_path / "test.zip") as archive:
        assert archive.namelist() == [f"ulm_000000_00000{i}_labelIds.png" for i in range(3)]
        dataset = loader.evaluation_dataset(cityscapes_data, "val")
        for name, batch in zip(archive.namelist(), dataset, strict=True):
            png = cv2.imdecode(np.frombuffer(archive.read(name), "uint8"), cv2.IMREAD_UNCHANGED)
            assert {*np.unique(png)} <= {7, 23, 26}
            predictions = np.select([png == 7, png == 23, png == 26], [0, 1, 2])
            labels = batch["label"].numpy()
            boundary([name], labels, predictions[None])
            np.add.at(matrix, (labels[labels < 3], predictions[None][labels < 3]), 1)
    np.testing.assert_array_equal(matrix, scores.matrix)
    rows = found["classes"].values()
    np.testing.assert_allclose([row["boundary_iou"] for row in rows], boundary.iou)


def test_cityscapes_is_checked_before_anything_runs(tiny_run, tmp_path, cityscapes_data, frames):
    zipped = ["--run", tiny_run.path, "--submission", tmp_path / "test.zip"]
    with pytest.raises(UserError, match="for the data set 'cityscapes'"):
        call(*zipped)
    truth = ["--cityscapes-ground-truth", tmp_path]
    with pytest.raises(UserError, match="must hold the annotation of every image"):
        call("--run", tiny_run.path, "--data", cityscapes_data, *truth)
    assert not list(tmp_path.iterdir())


def test_split_without_labels(tiny_run, small_model, tmp_path, monkeypatch, capsys):
    plain = loader.evaluation_dataset
    monkeypatch.setattr(
        loader,
        "evaluation_dataset",
        lambda *a, **k: plain(*a, **k).map(
            lambda b: {**b, "label": tf.fill(tf.shape(b["label"]), tf.constant(255, "uint8"))}
        ),
    )
    data = tiny_run.config.data.folder
    call("--saved-model", small_model, "--data", data, "--output", tmp_path / "scores.json")
    assert "there is nothing to score" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["mean_iou"] is None


def test_compare(tiny_run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    other, output = tmp_path / "val-7.json", tmp_path / "comparison.json"
    for file in (tiny_run.path / "evaluation" / "val.json", other):
        matrices = rng.integers(0, 50, (3, 3, 3)) + 200 * np.eye(3, dtype=int)
        parts = [np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)]
        counts = ImageCounts(["a", "b", "c"], np.stack(parts, axis=1))
        results.write(file, Scores(matrices.sum(0)).to_dict(NAMES), counts)
    call("--compare", tiny_run.path, other, "--output", output, "--resamples", 200)
    found = json.loads(output.read_text())
    scores = [
        json.loads(file.read_text()) for file in (tiny_run.path / "evaluation" / "val.json", other)
    ]
    for n in NAMES:
        a, b = (file["classes"][n]["iou"] for file in scores)
        row = found["classes"][n]
        assert row["difference"] == pytest.approx(b - a)
        assert row["low"] <= row["difference"] <= row["high"]
    assert found["mean_iou"]["second"] == pytest.approx(scores[1]["mean_iou"])
    assert (found["num_images"], found["resamples"], found["confidence"]) == (3, 200, 0.95)
    printed = capsys.readouterr().out
    assert f"B: {other}" in printed and "mean IoU" in printed

    same = ["--compare", tiny_run.path, tiny_run.path]
    with pytest.raises(UserError, match=r"There is no .*evaluation/test\.json\. Evaluate with"):
        call(*same, "--split", "test")
    with pytest.raises(UserError, match="is not a run"):
        call("--compare", tiny_run.path, tmp_path)
    renamed = {**scores[1], "classes": {f"x{n}": row for n, row in scores[0]["classes"].items()}}
    (tmp_path / "x.json").write_text(json.dumps(renamed))
    (tmp_path / "x.npz").write_bytes(other.with_suffix(".npz").read_bytes())
    with pytest.raises(UserError, match="must have the same classes"):
        call("--compare", tiny_run.path, tmp_path / "x.json")


def test_panels_replace_earlier_ones(tiny_run, small_model, tmp_path):
    of_model = ["--saved-model", small_model, "--data", tiny_run.config.data.folder]
    of_model += ["--output", tmp_path / "scores.json"]
    call(*of_model, "--panels", 10)  # More than there are images.
    assert len(list((tmp_path / "scores").glob("panel-*.png"))) == 3
    call(*of_model, "--panels", 2)
    names = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert names == ["confusion.png", "panel-000.png", "panel-001.png"]
    for name in names:
        assert cv2.imread(str(tmp_path / "scores" / name)).size


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
        (["--run", "a", "--panels", "0"], "must be 1 or more, not 0"),
        (["--run", "a", "--output", "scores"], "must end in .json, is scores"),
        (["--run", "a", "--submission", "x"], "must end in .zip, is x"),
        (["--run", "a", "--scales", "1", "0"], "--scales must be above 0, are 1.0 0.0"),
        (["--run", "a", "--sliding-window", "8"], "takes HEIGHT WIDTH or nothing, got 1"),
        (["--run", "a", "--overlap", "0.5"], "--overlap goes with --sliding-window"),
        (["--run", "a", "--sliding-window", "--overlap", "1"], "must be in [0, 1), is 1.0"),
        (["--run", "a", "--boundary", "0"], "--boundary must be in (0, 1), is 0.0"),
        (["--run", "a", "--seed", "0"], "--seed goes with --compare"),
        (["--saved-model", "a", "--data", "b", "--sliding-window"], "needs HEIGHT WIDTH"),
        (["--compare", "a", "b", "--flip"], "--flip does not go with --compare"),
        (["--compare", "a", "b", "--scales"], "--scales does not go with --compare"),
        (["--compare", "a", "b", "--confidence", "95"], "must be in (0, 1), is 95.0"),
    ],
)
def test_refuses_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
