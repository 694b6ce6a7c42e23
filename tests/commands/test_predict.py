import pathlib
import re
import shutil
import struct
import subprocess
import sys
import types

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from kseg import serving
from kseg.classes import Classes
from kseg.commands import predict, predict_folder, predict_video
from kseg.errors import UserError
from kseg.evaluation import drawing
from kseg.evaluation.scaled_views import MultiScale
from kseg.evaluation.sliding_window import SlidingWindow
from kseg.segmenters import inference_model
from kseg.serving import memory
from kseg.serving.onnx import export_onnx
from tests.commands.tiny_run import PALETTE, SCRIPTS
from tests.commands.tiny_run import tiny_run as tiny_run

CLASSES = Classes(["red", "green", "blue"], PALETTE)


def channels_model():
    """Its logits are the channels of the image: it labels each pixel by the largest."""
    image = keras.Input((None, None, 3), name="image")
    layer = keras.layers.Conv2D(3, 1, use_bias=False, name="logits")
    model = keras.Model(image, {"logits": layer(image)})
    layer.kernel.assign(np.eye(3)[None, None])
    return model


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    serving.export_saved_model(channels_model(), path, CLASSES)
    return path


def write_image(path, size=(13, 21), seed=0):
    """Writes blocks of one of three colours; gives the picture and its labels."""
    labels = np.random.default_rng(seed).integers(0, 3, size).astype("uint8")
    picture = (np.eye(3)[labels] * 200 + 20).astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1])
    return picture, labels


def test_links_and_litter_in_a_folder(tmp_path):
    source = tmp_path / "in"
    for name in ("a.JPG", "b.jfif", "@eaDir/a.JPG/thumb.jpg", "__MACOSX/x.jpg", "._a.jpg"):
        write_image((source / name).with_suffix(".jpg"))
        (source / name).with_suffix(".jpg").rename(source / name)
    write_image(tmp_path / "elsewhere/c.png")
    links = {
        "linked": tmp_path / "elsewhere",
        "up": source,
        "gone.png": "d.png",
        "me.png": "me.png",
    }
    for name, target in links.items():
        (source / name).symlink_to(target)
    jobs = predict_folder.plan(source, tmp_path / "out")
    names = [str(job.image.relative_to(source)) for job in jobs]
    assert names == ["a.JPG", "b.jfif", "gone.png", "linked/c.png", "me.png"]
    reasons = [predict_folder.read(job.image)[1] for job in jobs]
    assert [bool(reason) for reason in reasons] == [False, False, True, False, True]


def call(saved_model, source, output, *more):
    arguments = ["--saved-model", saved_model, "--input", source, "--output", output, *more]
    return predict.main([str(argument) for argument in arguments])


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_labels_a_folder_with_its_subfolders(saved_model, tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    written = {
        name: write_image(source / name, size, seed)
        for seed, (name, size) in enumerate(
            {"a.png": (13, 21), "deep/a.PNG": (8, 8), "deep/er/b.c.bmp": (30, 5)}.items()
        )
    }
    (source / "notes.txt").write_text("no image")
    write_image(source / ".hidden.png")
    write_image(source / ".thumbnails" / "a.png")
    assert call(saved_model, source, output) == 0
    stems = ["a", "deep/a", "deep/er/b.c"]
    written_files = [f"{s}{end}.png" for s in stems for end in ("", "_overlay")]
    assert files(output) == sorted([*written_files, "predictions.json"])
    for name, (picture, labels) in written.items():
        stem = str(output / pathlib.Path(name).with_suffix(""))
        found = read(f"{stem}.png")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, labels)
        expected = drawing.overlay(picture, labels, PALETTE)
        np.testing.assert_array_equal(read(f"{stem}_overlay.png")[..., ::-1], expected)
    assert "3 images" in capsys.readouterr().out


def test_labels_with_a_file_for_another_runtime(tmp_path):
    export_onnx(channels_model(), tmp_path / "model.onnx", CLASSES)
    picture, labels = write_image(tmp_path / "a.png")
    call(tmp_path / "model.onnx", tmp_path / "a.png", tmp_path / "out")
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), labels)
    expected = drawing.overlay(picture, labels, PALETTE)
    np.testing.assert_array_equal(read(tmp_path / "out" / "a_overlay.png")[..., ::-1], expected)


def test_second_call_leaves_out_what_the_first_wrote(saved_model, tmp_path):
    write_image(tmp_path / "a.png")
    for _ in range(2):
        call(saved_model, tmp_path, tmp_path / "labels")
    assert files(tmp_path) == [
        *("a.png", "labels/a.png", "labels/a_overlay.png", "labels/predictions.json")
    ]


@pytest.mark.parametrize("kind", ["grey", "alpha", "16 bits", "12 bits"])
def test_images_of_other_kinds(saved_model, tmp_path, kind):
    path = tmp_path / "a.png"
    picture, labels = write_image(path)
    picture = picture[..., ::-1]
    if kind == "grey":
        cv2.imwrite(str(path), np.full((4, 5), 99, "uint8"))
        labels = np.zeros((4, 5))  # All channels are equal: the first one wins.
    elif kind == "alpha":
        cv2.imwrite(str(path), np.dstack([picture, picture[..., 0]]))
    elif kind == "16 bits":
        cv2.imwrite(str(path), picture.astype("uint16") * 256)
    else:
        cv2.imwrite(str(path), picture.astype("uint16") * 16)
        with pytest.raises(UserError, match=r"1 of 1 .*uses 12 .*`value_range=\(0, 4095\)`"):
            call(saved_model, path, tmp_path / "out")
    more = ["--range", "0", "4095"] if kind == "12 bits" else []
    call(saved_model, path, tmp_path / "out", *more)
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), labels)


def test_photos_are_turned_upright(saved_model, tmp_path):
    # Halves of one colour, wide enough that JPEG leaves their middle alone.
    picture = np.zeros((32, 64, 3), "uint8")
    picture[:, :32, 0], picture[:, 32:, 1] = 250, 250
    jpeg = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
    # EXIF with one entry: orientation 6, the camera was turned by 90 degrees.
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big")
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + marker + exif + jpeg[2:])
    call(saved_model, tmp_path / "a.jpg", tmp_path / "out")
    labels = read(tmp_path / "out" / "a.png")
    assert labels.shape == (64, 32)
    assert (labels[4:28, 4:28] == 0).all()
    assert (labels[36:60, 4:28] == 1).all()


def test_names_unreadable_images_and_labels_the_others(saved_model, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    write_image(source / "b.png")
    (source / "a.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    (source / "c.png").write_bytes(b"")
    message = r"2 of 3 .*a\.jpg \(the JPEG file is trunc.*c\.png \(the file is empty\)\. The others"
    with pytest.raises(UserError, match=message) as caught:
        call(saved_model, source, output)
    assert "\n" not in str(caught.value)
    assert files(output) == ["b.png", "b_overlay.png", "predictions.json"]


def test_names_as_long_as_they_get(saved_model, tmp_path):
    """255 bytes are a file's name; that of the overlay is 8 bytes longer."""
    source, output = tmp_path / "in", tmp_path / "out"
    names = ["a" * 243, "b" * 244, "c"]
    for name in names:
        write_image(source / f"{name}.png")
    with pytest.raises(UserError, match=r"1 of 3 .*b\.png \(its name is too long.*The others are"):
        call(saved_model, source, output)
    expected = [f"{name}{end}.png" for name in ("a" * 243, "c") for end in ("", "_overlay")]
    assert sorted({*files(output)} - {f"{names[1]}.png"}) == sorted([*expected, "predictions.json"])


def test_an_output_that_cannot_be_a_folder(saved_model, tmp_path):
    write_image(tmp_path / "in" / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file, not a folder"):
        call(saved_model, tmp_path / "in", tmp_path / "in" / "a.png" / "labels")


def test_refuses_before_it_writes(saved_model, tmp_path):
    write_image(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="no image or folder"):
        call(saved_model, tmp_path / "missing", out)
    with pytest.raises(UserError, match="There is no SavedModel"):
        call(tmp_path / "missing", tmp_path / "in", out)
    with pytest.raises(UserError, match="another folder than --input"):
        call(saved_model, tmp_path / "in", tmp_path / "in")
    with pytest.raises(UserError, match=r"a\.png would be overwritten"):
        call(saved_model, tmp_path / "in" / "a.png", tmp_path / "in")
    with pytest.raises(UserError, match="is a file"):
        call(saved_model, tmp_path / "in", tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no images"):
        call(saved_model, tmp_path / "empty", out)
    write_image(tmp_path / "in" / "a.bmp")
    with pytest.raises(UserError, match=r"a\.bmp and .*a\.png would both be written"):
        call(saved_model, tmp_path / "in", out)
    assert not out.exists()


def test_what_needs_too_much_memory_is_said_before_the_work(
    saved_model, tmp_path, monkeypatch, capsys
):
    _, labels = write_image(tmp_path / "in" / "small.png")
    picture = np.zeros((1000, 1200, 3), "uint8")
    cv2.imwrite(str(tmp_path / "in" / "big.png"), picture)
    monkeypatch.setattr(memory, "available", lambda: 10_000_000)
    with pytest.raises(UserError, match=r"1 of 2 .*big\.png \(1200 x 1000 pixels need about"):
        call(saved_model, tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == ["predictions.json", "small.png", "small_overlay.png"]
    np.testing.assert_array_equal(read(tmp_path / "out" / "small.png"), labels)
    assert capsys.readouterr().err.count("are free") == 1
    monkeypatch.setattr(memory, "available", lambda: 10_000_000_000)
    call(saved_model, tmp_path / "in", tmp_path / "out")
    assert (read(tmp_path / "out" / "big.png") == 0).all()


def write_video(path, frames, size=(48, 64), rate=12.5):
    """Blocks of 16 pixels of one of three colours, which compression hardly changes."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, size[::-1])
    labels = np.random.default_rng(0).integers(0, 3, (frames, 3, 4))
    labels = labels.repeat(16, axis=1).repeat(16, axis=2).astype("uint8")
    pictures = (np.eye(3)[labels] * 200 + 20).astype("uint8")
    for picture in pictures:
        writer.write(picture[..., ::-1])
    writer.release()
    return pictures, labels


def test_labels_a_video(saved_model, tmp_path, capsys):
    pictures, labels = write_video(tmp_path / "drive.avi", 5)
    call(saved_model, tmp_path / "drive.avi", tmp_path / "out")
    assert files(tmp_path / "out") == ["drive_overlay.mp4"]
    assert "5 frames" in capsys.readouterr().out
    capture = cv2.VideoCapture(str(tmp_path / "out/drive_overlay.mp4"))
    assert abs(capture.get(cv2.CAP_PROP_FPS) - 12.5) < 0.1
    for picture, truth in zip(pictures, labels, strict=True):
        there, frame = capture.read()
        assert there
        expected = drawing.overlay(picture, truth, PALETTE)
        difference = np.abs(frame[..., ::-1].astype(int) - expected)
        # Inside the blocks; two compressions blur their edges.
        assert np.median(difference) <= 12
    assert not capture.read()[0]


def test_a_video_that_does_not_fit_is_an_error(saved_model, tmp_path, monkeypatch, limit_file_size):
    """OpenCV only logs that a frame cannot be written."""
    write_video(tmp_path / "drive.avi", 240)
    limit_file_size(5000)
    with pytest.raises(OSError, match=r"not written completely: it has \d+ of 240 .*drive_overlay"):
        call(saved_model, tmp_path / "drive.avi", tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100_000))
    with pytest.raises(OSError, match=r"No space left on device: '.*/out/drive_overlay\.mp4'"):
        call(saved_model, tmp_path / "drive.avi", tmp_path / "out")
    assert files(tmp_path / "out") == []


def test_videos_are_turned_upright(saved_model, tmp_path):
    """Whatever the version of OpenCV does by default."""
    picture = np.zeros((48, 64, 3), "uint8")
    picture[:, :32, 2], picture[:, 32:, 1] = 220, 220
    writer = cv2.VideoWriter(str(tmp_path / "a.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(3):
        writer.write(picture)
    writer.release()
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    # The track's matrix, numbers of 16.16 bits: a turn by 90 degrees to the right.
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 20] = struct.pack(">5i", 0, 1 << 16, 0, -(1 << 16), 0)
    (tmp_path / "a.mp4").write_bytes(content)
    call(saved_model, tmp_path / "a.mp4", tmp_path / "out")
    there, frame = cv2.VideoCapture(str(tmp_path / "out/a_overlay.mp4")).read()
    assert there and frame.shape == (64, 48, 3)
    # The left half (red) has become the upper one.
    halves = frame[4:28, 8:40], frame[36:60, 8:40]
    colors = [half.reshape(-1, 3).mean(axis=0) for half in halves]
    expected = [(np.eye(3)[i] * 220 + np.array(PALETTE[i])) / 2 for i in (0, 1)]
    np.testing.assert_allclose(np.array(colors)[:, ::-1], expected, atol=15)


# As a phone's slow motion tells it; MPEG-4 holds no such fraction.
@pytest.mark.parametrize("rate", [239.841, 119.987, 29.97, 1000.0])
def test_frame_rates(saved_model, tmp_path, rate):
    write_video(tmp_path / "a.avi", 3, rate=rate)
    call(saved_model, tmp_path / "a.avi", tmp_path / "out")
    capture = cv2.VideoCapture(str(tmp_path / "out/a_overlay.mp4"))
    assert abs(capture.get(cv2.CAP_PROP_FPS) - rate) < 0.01


@pytest.mark.parametrize(
    "rate, expected",
    [
        (30.0, (30.0, True)),
        (239.8412, (239.84, True)),
        (59.9401, (59.94, True)),
        (90_000.0, (25.0, False)),
        (0.0, (25.0, False)),
        (-1.0, (25.0, False)),
        (float("nan"), (25.0, False)),
    ],
)
def test_frame_rates_that_can_be_written(rate, expected):
    found, told = predict_video.frame_rate(rate)
    assert (round(found, 2), told) == expected
    digits = next(d for d in range(5) if abs(found - round(found, d)) < 1e-9)
    assert found * 10**digits < 65_536


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64), (1, 1)])
def test_videos_of_odd_sizes_lose_nothing(saved_model, tmp_path, capsys, size, monkeypatch):
    labels = np.add.outer(np.arange(size[0]) // 16, np.arange(size[1]) // 16) % 3
    picture = np.ascontiguousarray((np.eye(3)[labels] * 200 + 20).astype("uint8")[..., ::-1])

    class Capture:
        """A video of one frame that has an odd size, which OpenCV does not write itself."""

        left = 1

        def __init__(self, path):
            pass

        def read(self):
            self.left -= 1
            return self.left == 0, picture

        def get(self, name):
            return 25.0 if name == cv2.CAP_PROP_FPS else 1

        def set(self, name, value):
            assert (name, value) == (cv2.CAP_PROP_ORIENTATION_AUTO, 1)

        def release(self):
            pass

    (tmp_path / "a.avi").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Capture)
        call(saved_model, tmp_path / "a.avi", tmp_path / "out")
    there, frame = cv2.VideoCapture(str(tmp_path / "out/a_overlay.mp4")).read()
    assert there
    even = [length + length % 2 for length in size]
    assert frame.shape == (*even, 3)
    expected = drawing.overlay(picture[..., ::-1], labels, PALETTE)
    expected = np.pad(
        expected, [(0, e - s) for e, s in zip(even, size, strict=True)] + [(0, 0)], "edge"
    )
    assert np.median(np.abs(frame[..., ::-1].astype(int) - expected)) <= 12
    assert f"became {even[1]} x {even[0]}" in capsys.readouterr().out


def test_frames_that_cannot_be_read(saved_model, tmp_path, monkeypatch):
    write_video(tmp_path / "a.avi", 12)
    whole = cv2.VideoCapture

    class Capture:
        """Some frames of the video cannot be decoded."""

        lost = ()

        def __init__(self, path):
            self.inner, self.number = whole(path), -1

        def read(self):
            self.number += 1
            there, frame = self.inner.read()
            return (False, None) if self.number in self.lost else (there, frame)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    Capture.lost = (3, 4, 8)
    with pytest.raises(UserError, match=r"3 of 12 frames of .*cannot be read.*repeats"):
        call(saved_model, tmp_path / "a.avi", tmp_path / "out")
    assert int(whole(str(tmp_path / "out/a_overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 12
    Capture.lost = range(6, 12)
    with pytest.raises(UserError, match=r"ends after 6 of 12 frames"):
        call(saved_model, tmp_path / "a.avi", tmp_path / "out")
    assert int(whole(str(tmp_path / "out/a_overlay.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 6


def test_animations_are_videos_and_still_gifs_images(saved_model, tmp_path):
    frames = [Image.fromarray(np.full((32, 48, 3), shade, "uint8")) for shade in (0, 90, 180)]
    source = tmp_path / "in"
    source.mkdir()
    frames[0].save(source / "still.gif")
    frames[0].save(source / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    call(saved_model, source / "still.gif", tmp_path / "out")
    call(saved_model, source / "moving.gif", tmp_path / "out")
    assert files(tmp_path / "out") == ["moving_overlay.mp4", "still.png", "still_overlay.png"]
    with pytest.raises(UserError, match=r"1 of 2 .*moving\.gif \(.*animation of 3 frames"):
        call(saved_model, source, tmp_path / "out2")


def test_videos_that_cannot_be(saved_model, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="is no readable video"):
        call(saved_model, tmp_path / "broken.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "a_overlay.mp4").write_bytes(b"")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "a_overlay.mp4")
    with pytest.raises(UserError, match="would be overwritten"):
        call(saved_model, tmp_path / "a.mp4", tmp_path)
    with pytest.raises(UserError, match="is a file"):
        call(saved_model, tmp_path / "a.mp4", tmp_path / "broken.mp4")


def test_as_a_command(saved_model, tmp_path):
    _, labels = write_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    command = [sys.executable, SCRIPTS / "predict.py", "--saved-model", saved_model]
    command += ["--input", "in", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stdout.startswith("1 image:")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "error: 1 of 2 images could not be labeled: in/broken.jpg (an image must be a JPEG, PNG, "
        "TIFF, WebP, GIF or BMP file, this is something else). The others are labeled"
    )
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png"), labels)


def probabilities_of(picture):
    """The probabilities of `channels_model`: its logits are the values of the pixel."""
    powers = np.exp(picture.astype("float64") - picture.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def write_shades(path, size, seed=0):
    """Writes an image whose probabilities are not 0 and 1."""
    picture = np.random.default_rng(seed).integers(100, 105, (*size, 3)).astype("uint8")
    cv2.imwrite(str(path), picture[..., ::-1])
    return picture


@pytest.mark.parametrize("kind", ["SavedModel", "ONNX"])
@pytest.mark.parametrize(
    "views",
    [[], ["--sliding-window", "8", "16", "--blend", "gaussian"], ["--flip", "--scales", "1.0"]],
)
def test_confidence_probabilities_and_colors(saved_model, tmp_path, views, kind):
    model, output = saved_model, tmp_path / "out"
    if kind == "ONNX":
        model = tmp_path / "model.onnx"
        export_onnx(channels_model(), model, CLASSES)
    picture = write_shades(tmp_path / "a.png", (20, 30))
    more = ["--confidence", "--probabilities", "--colors", "--no-overlay", *views]
    assert call(model, tmp_path / "a.png", output, *more) == 0
    endings = ("_colors.png", "_confidence.png", "_probabilities.npy")
    assert files(output) == ["a.png", *(f"a{e}" for e in endings), "legend.png"]
    expected = probabilities_of(picture)
    found = np.load(output / "a_probabilities.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=1e-3)
    labels = read(output / "a.png")
    np.testing.assert_array_equal(
        np.take_along_axis(expected, labels[..., None].astype(int), 2)[..., 0], expected.max(-1)
    )
    colors = read(output / "a_colors.png")[..., ::-1]
    np.testing.assert_array_equal(colors, np.array(PALETTE)[labels])
    confidence = read(output / "a_confidence.png")
    assert np.abs(confidence - 255 * expected.max(-1)).max() <= 0.51
    legend = read(output / "legend.png")[..., ::-1].reshape(-1, 3).tolist()
    assert all(color in legend for color in PALETTE)


def test_views_are_those_of_an_evaluation(tiny_run, tmp_path):
    """Windows within scales and mirror images, as `kseg evaluate` averages them."""
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype("uint8")
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    views = {"sliding_window": [], "overlap": 0.5, "scales": [0.5, 1.0], "flip": True}
    output = tmp_path / "out"
    predict.predict(tiny_run.path, tmp_path / "a.png", output, checkpoint="best", **views)
    model = inference_model(tiny_run.segmenter("best"))
    expected = MultiScale(SlidingWindow(model, 3, (32, 32), overlap=0.5), 3, [0.5, 1.0], flip=True)
    expected = np.argmax(expected(picture[None])[0], -1)
    assert len(np.unique(expected)) > 1
    assert np.mean(read(output / "a.png") == expected) > 0.999


@pytest.mark.parametrize(
    "more, message",
    [
        (["--overlap", "0.5"], "--overlap goes with --sliding-window"),
        (["--blend", "flat"], "--blend goes with --sliding-window"),
        (["--sliding-window", "8"], "takes HEIGHT WIDTH or nothing, got 1"),
        (["--sliding-window", "8", "8", "--overlap", "1"], r"must be in \[0, 1\), is 1.0"),
        (["--sliding-window", "0", "8"], "must be 1 or more, not 0"),
        (["--scales", "0"], "--scales must be above 0"),
        (["--scales", "nan"], "--scales must be above 0"),
        (["--batch-size", "0"], "must be 1 or more, not 0"),
    ],
)
def test_refuses_views(saved_model, tmp_path, capsys, more, message):
    write_image(tmp_path / "a.png")
    with pytest.raises(SystemExit) as exit:
        call(saved_model, tmp_path / "a.png", tmp_path / "out", *more)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_goes_with_other_inputs(saved_model, tmp_path):
    write_image(tmp_path / "a.png")
    write_video(tmp_path / "a.avi", 2)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="`resume` goes with a folder"):
        predict.predict(saved_model, tmp_path / "a.png", out, resume=True)
    with pytest.raises(UserError, match="`confidence` goes with images"):
        predict.predict(saved_model, tmp_path / "a.avi", out, confidence=True)
    with pytest.raises(UserError, match="`sliding_window` with an exported network needs HEIGHT"):
        predict.predict(saved_model, tmp_path / "a.png", out, sliding_window=[])
    with pytest.raises(UserError, match=r"legend of the colors and .* would both be written"):
        write_image(tmp_path / "in" / "legend.png")
        predict.predict(saved_model, tmp_path / "in", out, colors=True)
    assert not out.exists()


def test_resumes(saved_model, tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    truth = {name: write_image(source / f"{name}.png", seed=i)[1] for i, name in enumerate("abc")}
    (source / "b.png").write_bytes(b"not yet")
    with pytest.raises(UserError, match="1 of 3"):
        call(saved_model, source, output, "--resume", "--confidence")
    times = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    (output / "c_confidence.png").unlink()
    write_image(source / "b.png", seed=1)
    call(saved_model, source, output, "--resume", "--confidence")
    assert "1 of 3 images are finished: skipped" in capsys.readouterr().out
    for name, labels in truth.items():
        np.testing.assert_array_equal(read(output / f"{name}.png"), labels)
    kept = {p.name for p in output.iterdir() if times.get(p.name) == p.stat().st_mtime_ns}
    assert kept == {"a.png", "a_overlay.png", "a_confidence.png", "predictions.json"}
    # A changed image is labeled again.
    labels = write_image(source / "a.png", seed=9)[1]
    call(saved_model, source, output, "--resume", "--confidence")
    np.testing.assert_array_equal(read(output / "a.png"), labels)
    with pytest.raises(UserError, match=r"needs the settings .* \(flip: False, now True"):
        call(saved_model, source, output, "--resume", "--flip")
    write_image(tmp_path / "other" / "a.png", seed=5)
    with pytest.raises(UserError, match=r"needs the settings .* \(input: .*in, now .*other"):
        call(saved_model, tmp_path / "other", output, "--resume", "--confidence")
    # Without --resume everything is written again, and an interruption of that can be resumed.
    call(saved_model, source, output)
    (output / "predictions.json").write_text("{")
    with pytest.raises(UserError, match=r"predictions\.json is damaged"):
        call(saved_model, source, output, "--resume")


def test_batches_of_equal_size(tmp_path):
    sizes = [(8, 9), (10, 4), (8, 9), (8, 9), (10, 4), (8, 9), (8, 9)]
    jobs = []
    for i, size in enumerate(sizes):
        write_image(tmp_path / f"{i}.png", size, i)
        jobs.append(
            predict_folder.Job(tmp_path / f"{i}.png", {"labels": tmp_path / f"{i}_l.png"}, {})
        )
    (tmp_path / "3.png").write_bytes(b"damaged")
    seen, unlabeled = [], {}

    def label(images):
        seen.append(images.shape[:3])
        if len(images) > 2:
            raise ValueError("too many")
        return {"labels": images.argmax(-1).astype("uint8")}

    predict_folder.label_images(jobs, 7, label, PALETTE, None, unlabeled, tmp_path, batch_size=3)
    # The four left of the first size: three, which fail and are labeled one by one, and one.
    assert seen[:4] == [(3, 8, 9), (1, 8, 9), (1, 8, 9), (1, 8, 9)]
    assert (2, 10, 4) in seen and (1, 8, 9) in seen[4:]
    assert tmp_path / "3.png" in unlabeled
    for i in (0, 2, 5, 6):
        expected = read(tmp_path / f"{i}.png")[..., ::-1].argmax(-1)
        np.testing.assert_array_equal(read(tmp_path / f"{i}_l.png"), expected)
