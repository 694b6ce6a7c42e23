import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from kseg import backbones, config
from kseg.analysis.failures import image_mean_iou
from kseg.analysis.features import FeatureCollector
from kseg.classes import Classes
from kseg.commands import analyze
from kseg.errors import UserError
from kseg.layers import resize_labels
from kseg.runs import Run, checkpoints
from kseg.segmenters import inference_model
from kseg.training.build import build_trainer
from pipelines import loader
from tests.analysis.test_report import check_self_contained
from tests.commands.tiny_run import NAMES, PALETTE, write_data, write_run
from tests.commands.tiny_run import tiny_run as tiny_run
from tests.tiny_networks import tiny_backbone


def call(*arguments):
    assert analyze.main([str(argument) for argument in arguments]) == 0


def picture(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR)


@pytest.fixture(scope="module")
def events(tiny_run):
    """Writes the events of a training."""
    for part, tag in (("train", "loss/loss"), ("evaluation", "mean_iou")):
        writer = tf.summary.create_file_writer(str(tiny_run.path / "tensorboard" / part))
        with writer.as_default():
            for step in (1, 5, 9):
                tf.summary.scalar(tag, 1 / step, step=step)
        writer.close()


def predictions(run):
    """Of each image of the split its truth and prediction."""
    model = inference_model(run.segmenter())
    return {
        batch["id"].numpy()[0].decode(): (
            batch["label"].numpy()[0],
            model(batch["image"]).numpy()[0].argmax(-1),
        )
        for batch in loader.evaluation_dataset(run.config.data.folder, "val")
    }


@pytest.mark.parametrize("raw", [True, False])
def test_features(tiny_run, raw, capsys):
    call("--run", tiny_run.path, "--what", "features", "--samples", 50, *["--raw"] * raw)
    found = json.loads((tiny_run.path / "evaluation" / "features.json").read_text())
    segmenter = tiny_run.segmenter()
    collector = None
    for batch in loader.evaluation_dataset(tiny_run.config.data.folder, "val"):
        features = segmenter(batch["image"])["features"].numpy()[0]
        labels = resize_labels(batch["label"], *features.shape[:2]).numpy()
        if not raw:
            features = features / np.linalg.norm(features, axis=-1, keepdims=True)
        dim = features.shape[-1]
        collector = collector or FeatureCollector(3, dim, samples_per_class=50)
        collector.add(features.reshape(-1, dim), labels.reshape(-1))
    expected = collector.statistics().to_dict(NAMES)
    printed = capsys.readouterr().out
    for key in ("A", "U", "U_3", "U_5"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3)
        assert f"{key} {found[key]:.4f}" in printed
    assert "exact on a sample, at most 50 pixels a class, seed 0" in printed
    assert (found["split"], found["unit_norm"]) == ("val", not raw)
    assert [found["classes"][name]["num_samples"] for name in NAMES] == [50, 50, 50]


def test_curves(tiny_run, events):
    call("--run", tiny_run.path, "--what", "curves")
    assert picture(tiny_run.path / "analysis" / "curves.png").shape == (525, 1650, 3)


def test_failures(tiny_run, capsys):
    folder = tiny_run.path / "analysis" / "failures"
    folder.mkdir(parents=True)
    (folder / "panel-007.png").touch()
    call("--run", tiny_run.path, "--what", "failures", "--images", 2)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["panel-000.png", "panel-001.png"], "those of an earlier call are gone"
    found = json.loads((tiny_run.path / "analysis" / "failures.json").read_text())
    expected = {
        name: image_mean_iou(truth, prediction, 3)
        for name, (truth, prediction) in predictions(tiny_run).items()
    }
    assert found["mean_iou"] == pytest.approx(expected)
    assert list(found["mean_iou"]) == sorted(expected, key=expected.get)
    printed = capsys.readouterr().out
    worst = min(expected, key=expected.get)
    assert f"mean IoU {100 * expected[worst]:6.2f} %  {worst}" in printed
    pair = found["taken_for"][0]
    pixels = sum(
        ((truth == NAMES.index(pair["class"])) & (p == NAMES.index(pair["prediction"]))).sum()
        for truth, p in predictions(tiny_run).values()
    )
    assert pair["pixels"] == pixels


def test_t_sne(tiny_run):
    call("--run", tiny_run.path, "--what", "tsne", "--points", 60)
    for name in ("pixels", "regions"):
        assert picture(tiny_run.path / "analysis" / f"tsne-{name}.png").std() > 5
    folder = tiny_run.path / "tensorboard" / "projector"
    lines = (folder / "pixels.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["class", *np.repeat(NAMES, 20)]
    lines = (folder / "regions.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[1] for line in lines[1:]) == sorted("012" * 3)
    reader = tf.train.load_checkpoint(str(folder))
    vectors = reader.get_tensor("pixels/.ATTRIBUTES/VARIABLE_VALUE")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_feature_maps(tiny_run):
    call("--run", tiny_run.path, "--what", "feature-maps", "--images", 2)
    found = picture(tiny_run.path / "analysis" / "feature-maps.png")
    # The first and the last image, 40 x 56 pixels each, brought to a width of 320.
    assert found.shape[1] == 3 * 328 + 8
    assert found.shape[0] == 26 + 2 * (round(40 * 320 / 56) + 8)


def test_grad_cam(tiny_run):
    folder = tiny_run.path / "analysis" / "grad-cam"
    folder.mkdir(parents=True)
    (folder / "007-old.png").touch()
    arguments = ["--classes", "car", "road", "--stages", "c2", "c3", "features"]
    call("--run", tiny_run.path, "--what", "grad-cam", *arguments)
    assert {file.name for file in folder.iterdir()} == {"001-road.png", "002-car.png"}
    assert picture(folder / "001-road.png").shape[1] == 4 * 328 + 8


@pytest.fixture(scope="module")
def other_run(tiny_run, tmp_path_factory):
    """The same network with other weights, on the same data."""
    run = write_run(tmp_path_factory.mktemp("other") / "other", tiny_run.config.data.folder)
    (run.path / "checkpoints" / "best.npz").unlink()
    return run


def test_panels(tiny_run, other_run, capsys):
    runs = ["--runs", tiny_run.path, other_run.path]
    call(*runs, "--what", "panels", "--images", 2, "--checkpoint", "best")
    folder = tiny_run.path / "analysis" / "against-other"
    found = json.loads((folder / "mean_iou.json").read_text())
    assert found["runs"] == ["run", "other"]
    views = [predictions(run) for run in (tiny_run, other_run)]
    for name in views[0]:
        expected = [image_mean_iou(*view[name], 3) for view in views]
        assert found["images"][name] == pytest.approx(expected)
    assert 1 <= len(list(folder.glob("panel-*.png"))) <= 2
    assert picture(folder / "panel-000.png").shape[1] == 5 * 328 + 8
    assert "mean IoU  run " in capsys.readouterr().out


def test_report(tiny_run, events, capsys):
    call("--run", tiny_run.path, "--what", "report", "--images", 2, "--points", 60)
    assert "report:" in capsys.readouterr().out
    text = (tiny_run.path / "analysis" / "report.html").read_text()
    reader = check_self_contained(text)
    told = " ".join(" ".join(reader.text).split())
    expected = [image_mean_iou(*both, 3) for both in predictions(tiny_run).values()]
    assert f"Median {100 * np.median(expected):.2f} %" in told
    assert "ocr on hrnet_w18_small, without contrast; tiny, split val, 3 images" in told
    # Two examples and the two worst with four pictures, two feature maps, three Grad-CAMs of c5
    # and of the features.
    assert len(reader.of("img")) == 2 * 2 * 4 + 2 * 2 + 3 * 3
    assert len(reader.of("svg")) == 4


def test_refuses(tiny_run, tmp_path):
    run = ["--run", tiny_run.path, "--what"]
    for option, least in (("samples", 2), ("points", 1), ("images", 1)):
        with pytest.raises(UserError, match=f"--{option} must be at least {least}"):
            call(*run, "features", f"--{option}", least - 1)
    other = write_data(tmp_path / "other", names=["a", "b", "c"])
    with pytest.raises(UserError, match="classes of the model"):
        call(*run, "features", "--data", other)
    with pytest.raises(UserError, match="needs --run"):
        call("--what", "features")
    with pytest.raises(UserError, match="two folders or more"):
        call("--what", "panels", "--runs", tiny_run.path)
    with pytest.raises(UserError, match=r"--stages must be of c2, .*'c9'"):
        call(*run, "grad-cam", "--stages", "c9")
    with pytest.raises(UserError, match=r"--classes must name .*sky, road, car.*'cat'"):
        call(*run, "grad-cam", "--classes", "cat")
    with pytest.raises(SystemExit):
        call(*run, "nothing")


def test_a_run_without_events(tmp_path):
    run = write_run(tmp_path / "run", write_data(tmp_path / "data"))
    with pytest.raises(UserError, match="has no TensorBoard events"):
        call("--run", run.path, "--what", "curves")


@pytest.fixture(scope="module")
def contrast_run(tmp_path_factory):
    """A run with an objective and its state of step 3, as training stores it."""
    folder = tmp_path_factory.mktemp("contrast")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "hrnet_w18_small", tiny_backbone)
        values = {
            "name": "tiny",
            "model": {"backbone": {"name": "hrnet_w18_small"}, "head": {"name": "hrnet"}},
            "contrast": [{"name": "region_contrast", "capacity": 4, "weight": 0.5}],
            "data": {
                "dataset": "tiny",
                "path": str(write_data(folder / "data")),
                "train_split": "val",
                "crop_size": [32, 32],
                "batch_size": 2,
            },
            "train": {"steps": 5},
        }
        run = Run.create(
            folder / "run", config.parse(values, source="tiny"), Classes(NAMES, PALETTE)
        )
        variables = checkpoints.training_variables(build_trainer(run, tf.distribute.get_strategy()))
        for step in (2, 3):
            file = run.path / "checkpoints" / f"step-{step:08d}.npz"
            checkpoints.save(file, variables, {"step": step, **run.identity()})
        yield run


def test_gradients(contrast_run, capsys):
    call("--run", contrast_run.path, "--what", "gradients", "--batches", 2)
    printed = capsys.readouterr().out
    assert "over 2 training batches of 2 from step 3" in printed
    found = json.loads((contrast_run.path / "analysis" / "gradients.json").read_text())
    assert (found["step"], found["batches"], found["reference"]) == (3, 2, "cross_entropy")
    terms = found["terms"]
    assert terms["cross_entropy"]["ratio"] == pytest.approx({"mean": 1, "std": 0}, abs=1e-5)
    (term,) = (term for name, term in terms.items() if name.startswith("region_contrast"))
    assert term["weight"] == 0.5 and term["ratio"]["mean"] > 0
    assert f"{term['ratio']['mean']:.3f} +- {term['ratio']['std']:.3f}" in printed


def test_gradients_of_the_best_weights_are_refused(contrast_run):
    with pytest.raises(UserError, match="with its memory banks: --checkpoint latest"):
        analyze.analyze("gradients", contrast_run.path, checkpoint="best")
    with pytest.raises(UserError, match=r"batches of data\.train_split"):
        analyze.analyze("gradients", contrast_run.path, split="val")
    with pytest.raises(UserError, match=r"--batches must be at least 1\. Received: 0"):
        analyze.analyze("gradients", contrast_run.path, batches=0)
