import sys

import numpy as np
import pytest

from kseg.config.schema import Model
from kseg.errors import UnavailableError, UserError
from kseg.segmenters import build_segmenter
from kseg.training.initialization import check_pretrained, load_pretrained
from tests.tiny_networks import tiny_backbone


def whole_network(source):
    return Model.model_validate(
        {"backbone": {"name": "hrnet_w18_small"}, "head": {"name": "hrnet"}, "weights": source}
    )


def with_backbone_weights(source, **keys):
    backbone = {"name": "hrnet_w18_small", "weights": source, **keys}
    return Model.model_validate({"backbone": backbone, "head": {"name": "hrnet"}})


def segmenter():
    return build_segmenter(tiny_backbone(), "hrnet", 3, projections=("c2",))


def test_none():
    assert load_pretrained(segmenter(), whole_network(None)) == "random"


@pytest.mark.parametrize("whole", [False, True])
def test_from_a_file(tmp_path, capsys, whole):
    published, fresh = segmenter(), segmenter()
    for weight in published.weights:
        weight.assign(np.random.default_rng(1).uniform(0.5, 1.5, weight.shape))
    path = str(tmp_path / "published.weights.h5")
    published.save_weights(path)
    before = fresh.get_weights()
    config = whole_network(path) if whole else with_backbone_weights(path)
    assert load_pretrained(fresh, config) == path
    assert f"from {path}" in capsys.readouterr().out
    for weight, old, goal in zip(fresh.weights, before, published.get_weights(), strict=True):
        loaded = whole or weight.path.startswith(("stem", "stage"))
        np.testing.assert_array_equal(weight, goal if loaded else old)


def unavailable(monkeypatch):
    def load_weights(*_, **__):
        raise UnavailableError("hf://a/b cannot be had: no network. Download c of a/b")

    monkeypatch.setattr("kseg.weights.load_weights", load_weights)


def test_what_cannot_be_had_stops(monkeypatch):
    unavailable(monkeypatch)
    with pytest.raises(UserError, match=r"Download c of a/b. Or .*weights=null") as error:
        load_pretrained(segmenter(), with_backbone_weights("hf://a/b"))
    assert "\n" not in str(error.value)


def test_or_is_one_line_of_warning(monkeypatch, capsys):
    unavailable(monkeypatch)
    config = with_backbone_weights("hf://a/b", weights_if_missing="warn")
    assert load_pretrained(segmenter(), config) == "random"
    warning = capsys.readouterr().err
    assert warning.startswith("warning: all weights start at random: hf://a/b cannot be had")
    assert warning.count("\n") == 1


def test_the_way_out_names_the_key_that_holds_the_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r"start at random: .*\"model.weights=null"):
        check_pretrained(whole_network("hf://owner/name"))
    with pytest.raises(UnavailableError, match=r"start at random: .*\"model.backbone.weights=null"):
        check_pretrained(with_backbone_weights("hf://owner/name"))


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere.npz", "There is no weights file nowhere.npz"),
        ("weights.zip", "must end in one of"),
        ("ftp://host/file.npz", "must be a file, hf://owner/name or keras_cv://preset"),
        ("hf://owner", "must be hf://owner/name"),
    ],
)
def test_sources_that_cannot_be_had_are_refused_before_anything_is_built(source, message):
    with pytest.raises(UserError, match=message):
        check_pretrained(with_backbone_weights(source))


def test_a_missing_package_is_a_mistake_where_the_weights_are_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r"pip install.*Or start at random"):
        check_pretrained(with_backbone_weights("hf://owner/name"))
    check_pretrained(with_backbone_weights("hf://owner/name", weights_if_missing="warn"))
