"""Images of four channels of 16 bits, and of one of float32, through all commands."""

import json
import shutil

import cv2
import numpy as np
import pytest

import kseg
from kseg import backbones
from kseg.commands import analyze, evaluate, export, predict, prepare, serve, train
from kseg.errors import UserError
from kseg.evaluation.drawing import overlay
from kseg.pixel_format import to_picture
from kseg.runs import Run
from tests.tiny_networks import tiny_resnet

SIZE = (40, 50)
KINDS = ("bands", "heights")


def write_source(folder, kind):
    """Writes a folder data set: TIFFs of 12 bits in 16, or .npy of float32."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder / "classes.csv").write_text("name,value\nground,0\nthing,1\n")
    for split, count in (("train", 4), ("val", 2)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros(SIZE, "uint8")
            mask[10:24, 5 + number : 30] = 1
            stem = f"{split}{number}"
            if kind == "bands":
                values = rng.integers(200, 900, (*SIZE, 4)).astype("uint16")
                values[mask == 1, 3] += 2500
                file = folder / "images" / split / f"{stem}.tif"
                cv2.imwrite(str(file), values[..., [2, 1, 0, 3]])
            else:
                values = (rng.normal(size=SIZE) * 3 - 100 + 12 * mask).astype("float32")
                np.save(folder / "images" / split / f"{stem}.npy", values)
            cv2.imwrite(str(folder / "labels" / split / f"{stem}.png"), mask)
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "resnet18", tiny_resnet)
        yield


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    """`(folder, kind, output)`: data and run in a folder, and what training printed."""
    folder = tmp_path_factory.mktemp(request.param)
    channels = {"bands": 4, "heights": 1}[request.param]
    source = write_source(folder / "source", request.param)
    command = ["folder", "--source", str(source), "--channels", str(channels)]
    assert prepare.main([*command, "--output", str(folder / "data")]) == 0
    config = {
        "model": {
            "backbone": {"name": "resnet18"},
            "head": {"name": "deeplabv3", "channels": 4, "aspp_channels": 4},
        },
        "data": {
            "dataset": "folder",
            "path": str(folder / "data"),
            "crop_size": [32, 32],
            "batch_size": 2,
            "color_jitter": {},
            "blur": {},
        },
        "train": {"steps": 2, "checkpoint_every": 1, "evaluate_every": 1, "devices": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
        train.main(["--config", str(folder / "config.json"), "--run", str(folder / "run")])
    return folder, request.param, "\n".join(lines)


def image_of(folder, number=0):
    file = next((folder / "source/images/val").glob(f"val{number}.*"))
    if file.suffix == ".npy":
        return np.load(file)[..., None]
    return cv2.imread(str(file), cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]]


def test_training_says_what_the_images_are_and_what_is_left_out(case):
    _, kind, output = case
    if kind == "bands":
        assert "images: 4 channels of uint16, 0 to 4095; normalized" in output
        assert "data.color_jitter: no saturation, hue," in output
    else:
        assert "images: 1 channel of float32, -1" in output
        assert "data.color_jitter: no brightness, contrast, saturation, hue," in output


def test_a_run_resumes_and_is_evaluated(case, tmp_path, capsys):
    folder, _, _ = case
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000002.npz").unlink()
    train.main(["--config", str(folder / "config.json"), "--run", str(tmp_path / "run")])
    with (
        np.load(folder / "run/checkpoints/step-00000002.npz") as whole,
        np.load(tmp_path / "run/checkpoints/step-00000002.npz") as resumed,
    ):
        name = "model/conv1/convolution/kernel"
        np.testing.assert_allclose(resumed[name], whole[name], rtol=1e-4, atol=1e-6)
    evaluate.main(["--run", str(folder / "run"), "--panels", "1"])
    evaluate.main(["--saved-model", str(folder / "run/saved_model"), "--data",
                   str(folder / "data"), "--output", str(tmp_path / "s.json")])  # fmt: skip
    of_run = json.loads((folder / "run/evaluation/val.json").read_text())
    assert json.loads((tmp_path / "s.json").read_text())["mean_iou"] == of_run["mean_iou"]


def test_prediction_reads_what_preparation_read(case, tmp_path):
    folder, kind, _ = case
    model, source = str(folder / "run/saved_model"), str(folder / "source/images/val")
    predict.main(["--saved-model", model, "--input", source, "--output", str(tmp_path / "out")])
    loaded = kseg.load(model)
    image = image_of(folder)
    expected = np.argmax(loaded(image[None])[0], axis=-1).astype("uint8")
    found = cv2.imread(str(tmp_path / "out/val0.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, expected)
    picture = to_picture(image, loaded.pixel_format)
    drawn = cv2.imread(str(tmp_path / "out/val0_overlay.png"))[..., ::-1]
    np.testing.assert_array_equal(drawn, overlay(picture, found, loaded.classes.palette))
    if kind == "bands":
        tiles = {"tiles": True, "sliding_window": (64, 64)}
        predict.predict(model, source, tmp_path / "tiles", **tiles)
        in_tiles = cv2.imread(str(tmp_path / "tiles/val0.tif"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(in_tiles, expected)
    with pytest.raises(UserError, match="the network takes"):
        other = str(folder / "source/labels/val/val0.png")
        predict.predict(folder / "run", other, tmp_path / "o", checkpoint="best")
    with pytest.raises(UserError, match="`range` is for 8-bit RGB"):
        predict.predict(model, source, tmp_path / "o", value_range=(0, 4095))


def test_signatures_say_channels_dtype_and_range(case):
    folder, kind, _ = case
    model = kseg.load(folder / "run/saved_model")
    channels, dtype = (4, "uint16") if kind == "bands" else (1, "float32")
    spec = model.signature.structured_input_signature[1]["images"]
    assert (tuple(spec.shape), spec.dtype.name) == ((None, None, None, channels), dtype)
    said = model._loaded.pixel_format()
    assert said["channels"].numpy() == channels and said["dtype"].numpy().decode() == dtype
    assert tuple(said["value_range"].numpy()) == model.pixel_format.value_range
    assert model.pixel_format == Run.open(folder / "run").pixel_format
    image = image_of(folder)[None]
    expected = Run.open(folder / "run").segmenter("best")(image, training=False)["logits"]
    found = model(image).numpy()
    assert found.shape == (1, *SIZE, 2) and np.isfinite(expected).all()
    np.testing.assert_allclose(model(image.astype("float32")), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"height, width, {channels}"):
        model(np.zeros((1, 8, 8, 3), "uint8"))
    wrong = np.full((1, 8, 8, channels), np.nan, "float32")
    with pytest.raises(Exception, match="Received values from"):
        model(wrong)


def test_network_files(case, tmp_path, capsys):
    folder, kind, _ = case
    dtype = "uint16" if kind == "bands" else "float32"
    image = image_of(folder)[None]
    expected = kseg.load(folder / "run/saved_model")(image).numpy()
    for name, more in (("m.onnx", []), ("m.tflite", ["--size", *map(str, SIZE)])):
        output = str(tmp_path / name)
        export.main(["--run", str(folder / "run"), "--output", output, *more, "--check",
                     str(folder / "source/images/val")])  # fmt: skip
        model = kseg.load(output)
        assert model.pixel_format == Run.open(folder / "run").pixel_format
        np.testing.assert_allclose(model(image), expected, rtol=1e-3, atol=1e-4)
        predict.main(["--saved-model", output, "--input", str(folder / "source/images/val"),
                      "--output", str(tmp_path / f"{name}-out")])  # fmt: skip
    assert "2 images, against a SavedModel of it: 100" in capsys.readouterr().out
    onnx = pytest.importorskip("onnx")
    described = onnx.load(str(tmp_path / "m.onnx"))
    properties = {p.key: p.value for p in described.metadata_props}
    assert json.loads(properties["pixels"])["dtype"] == dtype
    input_type = described.graph.input[0].type.tensor_type
    assert input_type.shape.dim[3].dim_value == image.shape[-1]
    assert onnx.helper.tensor_dtype_to_np_dtype(input_type.elem_type) == dtype


def test_serve_and_other_data_are_refused(case, tmp_path):
    folder, _, _ = case
    with pytest.raises(UserError, match="The server takes pictures of 8-bit RGB"):
        serve.main(["--run", str(folder / "run"), "--port", "0"])
    prepare.main(["synthetic", "--output", str(tmp_path / "rgb"), "--train-images", "1",
                  "--val-images", "1", "--size", "32", "32"])  # fmt: skip
    (tmp_path / "names.csv").write_text("name,value\nground,0\nthing,1\n")
    with pytest.raises(UserError):
        evaluate.main(["--run", str(folder / "run"), "--data", str(tmp_path / "rgb")])


def test_analysis_draws_pictures(case):
    folder, _, _ = case
    analyze.main(["--run", str(folder / "run"), "--what", "failures", "--images", "1"])
    analyze.main(["--run", str(folder / "run"), "--what", "grad-cam", "--stages", "features"])
    assert list((folder / "run/analysis/grad-cam").glob("*.png"))
    assert list((folder / "run/analysis/failures").glob("*.png"))
