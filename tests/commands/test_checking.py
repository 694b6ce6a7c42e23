"""Arguments of the commands' functions, as someone who calls them from Python gets them wrong."""

import pathlib

import pytest

import kseg
from kseg.commands import checking
from kseg.errors import UserError

MISTAKES = [
    (lambda: kseg.train(None), "`config` must be a path"),
    (lambda: kseg.train({"model": {}}), "`config` must be a path"),
    (lambda: kseg.train("quickstart", run=5), "`run` must be a path"),
    (lambda: kseg.evaluate(7), "`run` must be a path"),
    (lambda: kseg.evaluate("run", batch_size=0), "`batch_size` must be a whole number of 1 or"),
    (lambda: kseg.evaluate("run", batch_size="4"), "`batch_size` must be a whole number of 1 or"),
    (lambda: kseg.evaluate("run", panels=-1), "`panels` must be a whole number of 0 or more"),
    (lambda: kseg.evaluate("run", scales=1.0), "`scales` must be a list of numbers"),
    (lambda: kseg.evaluate("run", scales=[-1.0]), "`scales` must be above 0"),
    (lambda: kseg.evaluate("run", sliding_window=64), r"`sliding_window` must be \(height, width"),
    (lambda: kseg.evaluate("run", sliding_window=(0, 64)), "two whole numbers above 0"),
    (lambda: kseg.evaluate("run", precision="float8"), "`precision` must be one of 'float32'"),
    (lambda: kseg.evaluate("run", overlap="0.5"), "`overlap` must be a number"),
    (lambda: kseg.evaluate("run", overlap=0.0), "`overlap` goes with `sliding_window`"),
    (lambda: kseg.evaluate("run", boundary=0.0), r"`boundary.* must be in \(0, 1\), is 0.0"),
    (lambda: kseg.evaluate("run", checkpoint=1.5), "`checkpoint` must be 'best', 'latest' or a"),
    (lambda: kseg.predict("model", "photos", None), "`output` must be a path"),
    (lambda: kseg.predict("model", "photos", "out", value_range=5), r"must be \(low, high\)"),
    (lambda: kseg.export("run", "out", format="torch"), "`format` must be one of 'saved_model'"),
    (lambda: kseg.export("run", "out.tflite", size=64), r"`size` must be \(height, width\)"),
    (lambda: kseg.export("run", "out.onnx", format="tflite"), "`output` out.onnx does not fit"),
    (lambda: kseg.export("run", "out", check=3), "`check` must be a path"),
    (lambda: kseg.prepare("synthetic", colour=3), "has no option `colour`. Its own options: `seed"),
    (lambda: kseg.prepare("synthetic", num_shards=0), "`num_shards` must be a whole number"),
    (lambda: kseg.prepare("synthetic", workers=True), "`workers` must be a whole number"),
    (lambda: kseg.prepare("synthetic", image_format="gif"), "`image_format` must be one of"),
    (lambda: kseg.prepare("camvid", "here", size=(1, 2)), "has no option `size`.* options: none"),
]


@pytest.mark.parametrize("call, message", MISTAKES)
def test_a_wrong_argument_is_named_before_any_work(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


def test_what_is_right_passes():
    checking.check_path("output", pathlib.Path("a"))
    checking.check_path("output", None, optional=True)
    checking.check_size("size", [3, 4])
    checking.check_size("size", [], empty=True)
    checking.check_numbers("value_range", (0, 4095.0), "", length=2)
    checking.check_count("panels", 0, least=0)
    checking.check_checkpoint("checkpoint", 3)
    checking.check_choice("format", None, ["onnx"])
