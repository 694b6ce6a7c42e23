import json
import sys

import huggingface_hub
import pytest
from huggingface_hub import errors

from kseg.errors import UnavailableError, UserError
from kseg.weights.hub import fetch_from_hugging_face, read_keras_cv_preset


@pytest.fixture
def hub(monkeypatch):
    """A fake hub; the test fills the dict of its files: (repository, file) -> path."""
    files = {}
    files["asked"] = []

    def download(repository, name, revision=None):
        files["asked"].append((repository, name, revision))
        result = files.get((repository, name))
        if isinstance(result, Exception):
            raise result
        if result is None:
            raise errors.EntryNotFoundError("no such file")
        return result

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name, revision=None: files.get(("cache", repository, name)),
    )
    return files


def test_takes_the_first_file_that_exists(hub):
    hub["timm/net", "pytorch_model.bin"] = "b"
    assert fetch_from_hugging_face("hf://timm/net") == "b"
    hub["timm/net", "model.safetensors"] = "a"
    assert fetch_from_hugging_face("hf://timm/net") == "a"


@pytest.mark.parametrize(
    "source, asked",
    [
        ("hf://timm/net.in1k/x/y.bin", ("timm/net.in1k", "x/y.bin", None)),
        ("hf://a-b/c_d@v1.0/y.npz", ("a-b/c_d", "y.npz", "v1.0")),
        ("hf://a/b@abc", ("a/b", "model.safetensors", "abc")),
    ],
)
def test_parts_of_a_source(hub, source, asked):
    repository, name, _ = asked
    hub[repository, name] = "path"
    assert fetch_from_hugging_face(source) == "path"
    assert hub["asked"] == [asked]


def test_a_cached_file_needs_no_network(hub):
    hub["cache", "timm/net", "pytorch_model.bin"] = "cached"
    assert fetch_from_hugging_face("hf://timm/net") == "cached"
    assert hub["asked"] == []


@pytest.mark.parametrize("source", ["hf://", "hf://net", "hf://a/b@", "hf://a b/c", "hf://a/b/"])
def test_malformed(hub, source):
    with pytest.raises(UserError, match="must be hf://owner/name"):
        fetch_from_hugging_face(source)


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("No connection. Try again\nlater."),
        errors.OfflineModeIsEnabled("No connection. Try again\nlater."),
        OSError("No connection. Try again\nlater."),
    ],
)
def test_no_network_is_one_line_that_says_what_to_do(hub, error):
    hub["timm/net", "model.safetensors"] = error
    with pytest.raises(UnavailableError) as caught:
        fetch_from_hugging_face("hf://timm/net")
    assert str(caught.value) == (
        "hf://timm/net is not available: No connection. Download model.safetensors or "
        "pytorch_model.bin of timm/net on a machine with network access, and give its path in "
        "place of hf://timm/net"
    )


def test_no_such_file(hub):
    with pytest.raises(UnavailableError, match=r"has no file model\.safetensors or py"):
        fetch_from_hugging_face("hf://timm/net")
    with pytest.raises(UnavailableError, match=r"timm/net .*has no file x\.bin"):
        fetch_from_hugging_face("hf://timm/net/x.bin")


def test_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r"needs the package huggingface_hub.*Download"):
        fetch_from_hugging_face("hf://timm/net")


@pytest.fixture
def keras_cv():
    return pytest.importorskip("keras_cv")


def test_keras_cv_preset(monkeypatch, keras_cv):
    import keras

    x = keras.Input((2,))
    model = keras.Model(x, keras.layers.Dense(1, name="dense")(x))
    asked = []

    def from_preset(cls, preset, load_weights):
        asked.append((preset, load_weights))
        return model

    cls = keras_cv.models.EfficientNetV2Backbone
    monkeypatch.setattr(cls, "from_preset", classmethod(from_preset))
    checkpoint = read_keras_cv_preset("keras_cv://efficientnetv2_b0_imagenet")
    assert asked == [("efficientnetv2_b0_imagenet", True)]
    assert set(checkpoint.arrays) == {"dense/kernel", "dense/bias"}


def test_keras_cv_preset_that_is_not_available(monkeypatch, keras_cv):
    def from_preset(cls, preset, load_weights):
        raise Exception("URL fetch failure\nand a traceback")

    cls = keras_cv.models.EfficientNetV2Backbone
    monkeypatch.setattr(cls, "from_preset", classmethod(from_preset))
    with pytest.raises(UnavailableError, match=r"is not available: URL fetch failure\. Load it"):
        read_keras_cv_preset("keras_cv://efficientnetv2_b0_imagenet")
    with pytest.raises(UserError, match=r"'efficientnetv2_b9'.*efficientnetv2_b0_imagenet"):
        read_keras_cv_preset("keras_cv://efficientnetv2_b9")
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(UnavailableError, match="needs the package keras-cv"):
        read_keras_cv_preset("keras_cv://efficientnetv2_b0_imagenet")


def test_several_files_by_their_index(hub, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    hub["timm/net", index.name] = str(index)
    hub["timm/net", "1.safetensors"] = "1"
    hub["cache", "timm/net", "2.safetensors"] = "2"
    assert fetch_from_hugging_face("hf://timm/net@v1") == str(index)
    assert ("timm/net", "1.safetensors", "v1") in hub["asked"]
    index.write_text("{")
    with pytest.raises(UserError, match="not a valid index of weights files"):
        fetch_from_hugging_face("hf://timm/net")
