import subprocess
import sys

import numpy as np
import pytest
import rasterio

import pipelines
from kseg.commands import prepare
from kseg.errors import UserError
from pipelines.errors import DataError
from tests.commands.tiny_run import SCRIPTS
from tests.pipelines.tiny_data import noise_example, write_files, write_pairs


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # To be put back: the script changes it.


def call(*arguments):
    assert prepare.main([str(argument) for argument in arguments]) == 0


def test_synthetic(tmp_path, capsys):
    arguments = ["synthetic", "--output", tmp_path, "--train-images", 5, "--val-images", 2]
    arguments += ["--size", 32, 48, "--seed", 3, "--shards", 2, "--workers", 1]
    call(*arguments)
    manifest = pipelines.read_manifest(tmp_path)
    assert manifest.options == {"seed": 3, "train_images": 5, "val_images": 2, "size": [32, 48]}
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:3] == ["train", "5", "2"] and printed[1].endswith("32x48")
    assert printed[2].split()[:3] == ["val", "2", "2"]
    names = [*manifest.class_names, "(ignored)"]
    shares = {line.split()[0]: line.split()[1:] for line in printed[5 : 5 + len(names)]}
    assert list(shares) == names
    for column in (0, 1):
        places = [2 * column] * len(manifest.class_names) + [column]  # Images stand between.
        total = sum(float(share[i]) for share, i in zip(shares.values(), places, strict=True))
        assert total == pytest.approx(100, abs=0.1)
    assert printed[-1] == f"Look at {tmp_path / 'report.png'} before training."
    assert (tmp_path / "report.png").exists()

    call(*arguments)
    again = capsys.readouterr()
    assert "nothing to do" in again.err
    assert again.out.splitlines() == printed
    call("verify", tmp_path)
    assert "all records are sound" in capsys.readouterr().out
    (tmp_path / "report.json").unlink()
    call("report", tmp_path, "--seed", 1)
    assert capsys.readouterr().out.splitlines() == printed
    assert (tmp_path / "report.json").exists()


def test_camvid(tmp_path, capsys):
    examples = [noise_example(0, (20, 30)), noise_example(1, (22, 30))]
    write_files(tmp_path / "train", tmp_path / "trainannot", examples)
    call("camvid", "--source", tmp_path, "--output", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["train", "2"]
    assert lines[1].endswith("various: 2 sizes from 20x30 to 22x30, 50 % 20x30")
    with pytest.raises(DataError, match=r"other options\. Use `overwrite=True`"):
        call("camvid", "--source", tmp_path, "--output", tmp_path / "out", "--shards", 2)
    call("camvid", "--source", tmp_path, "--output", tmp_path / "out", "--shards", 2, "--overwrite")


def test_cadis(tmp_path, monkeypatch):
    """The task is a part of the data set's name."""
    monkeypatch.chdir(tmp_path)
    values = np.uint8([[0, 7, 35]])
    write_pairs(tmp_path, {("Video05/Images/a.png", "Video05/Labels/a.png"): values})
    call("cadis", "--source", tmp_path, "--task", 1)
    manifest = pipelines.read_manifest("data/cadis_task1")
    assert manifest.dataset == "cadis_task1"
    assert manifest.split("val").pixels == [1, 0, 0, 0, 0, 0, 0, 2, 0]
    call("cadis_task1", "--source", tmp_path)  # The name that errors and configs use.


def test_coco_stuff(tmp_path):
    """Options reach the data set."""
    write_pairs(tmp_path, {("val/image/a.jpg", "val/label/a.png"): np.uint8([[0, 255, 181]])})
    arguments = ["coco_stuff", "--source", tmp_path, "--output", tmp_path / "out"]
    with pytest.raises(DataError, match="found 255"):
        call(*arguments)
    call(*arguments, "--encoding", "stuffthingmaps")
    manifest = pipelines.read_manifest(tmp_path / "out")
    assert manifest.options == {"encoding": "stuffthingmaps"}
    pixels = manifest.split("test").pixels
    assert (pixels[0], pixels[170], pixels[171]) == (1, 1, 1)


def test_image_format(tmp_path):
    """PNG images of the training split become JPEGs."""
    for split in ("train", "val"):
        examples = [noise_example(number) for number in range(2)]
        write_files(tmp_path / split, tmp_path / f"{split}annot", examples)
    arguments = ["camvid", "--source", tmp_path, "--output"]
    call(*arguments, tmp_path / "png")
    call(*arguments, tmp_path / "jpeg", "--image-format", "jpeg", "--quality", 50)
    before, after = (pipelines.read_manifest(tmp_path / name) for name in ("png", "jpeg"))
    assert after.options == {"image_format": "jpeg, quality 50"}
    assert before.split("train").shards[0].bytes > after.split("train").shards[0].bytes
    assert before.split("val").shards[0].bytes == after.split("val").shards[0].bytes
    with pytest.raises(SystemExit):
        call(*arguments, tmp_path / "bad", "--image-format", "jpeg", "--quality", 101)


def test_folder(tmp_path):
    pairs = {(f"images/{i}.jpg", f"labels/{i}.png"): np.uint8([[0, 1]]) for i in range(4)}
    write_pairs(tmp_path, pairs)
    (tmp_path / "mine.csv").write_text("name\nlow\nhigh\n")
    arguments = ["folder", "--source", tmp_path, "--output", tmp_path / "out"]
    arguments += ["--classes", tmp_path / "mine.csv", "--split", "train=0.75", "--split"]
    call(*arguments, "val=0.25")
    manifest = pipelines.read_manifest(tmp_path / "out")
    assert manifest.class_names == ["low", "high"]
    assert {name: split.num_images for name, split in manifest.splits.items()} == {
        "train": 3,
        "val": 1,
    }
    for part in ("val", "train=0.25", "a/b=0.25", "val="):
        with pytest.raises(DataError, match=r"--split takes NAME=RATIO or NAME=LIST FILE, once"):
            call(*arguments, part)


def test_a_mistake_is_one_line(tmp_path):
    """No traceback, exit code 2, and nothing on stdout."""
    command = [sys.executable, SCRIPTS / "prepare_data.py", "ade20k", "--source", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: {tmp_path} must be a folder, or a zip or tar file, with images/training/"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [[], ["kitti"], ["camvid"], ["synthetic", "--shards", "0"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith("--help")


def test_tiles(tmp_path, capsys):
    """Cuts a raster in strips; options that exclude each other are refused before any reading."""
    place = {"driver": "GTiff", "height": 40, "width": 50, "dtype": "uint8"}
    for kind, count in (("images", 3), ("labels", 1)):
        (tmp_path / kind).mkdir()
        with rasterio.open(tmp_path / kind / "a.tif", "w", count=count, **place) as file:
            file.write(np.arange(40 * 50 * count).reshape(count, 40, 50).astype("uint8") % 2)
    (tmp_path / "classes.csv").write_text("name\nlow\nhigh\n")
    arguments = ["folder", "--source", tmp_path, "--output", tmp_path / "out", "--tile", 16]
    arguments += [20, "--split", "train=0.5", "--split", "val=0.5"]
    call(*arguments, "--split-tiles", "--tile-overlap", 4)
    assert "train: 6 tiles of 1 images; 0 more, in which all is ignored" in capsys.readouterr().out
    manifest = pipelines.read_manifest(tmp_path / "out")
    assert manifest.options["tile"] == [16, 20] and manifest.options["tile_overlap"] == 4
    assert manifest.split("val").pixels[:2] == [500, 500]  # Each pixel of 20 x 50 once.
    with pytest.raises(DataError, match="1 images are too few for a split"):
        call(*arguments)
    with pytest.raises(UserError, match="`tile` must be"):
        call(*arguments, "--tile", 1, 2, 3)
    with pytest.raises(DataError, match="`split_tiles` goes with `tile`"):
        call("folder", "--source", tmp_path, "--split-tiles")
