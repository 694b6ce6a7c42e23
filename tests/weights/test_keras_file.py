import zipfile

import h5py
import keras
import numpy as np
import pytest

from kseg.errors import UserError
from kseg.layers import ConvNorm
from kseg.weights.keras_file import keras_names, read_keras_file


def toy_backbone():
    x = keras.Input((None, None, 3))
    y = ConvNorm(4, 3, name="first")(x)
    return keras.Model(x, ConvNorm(4, 3, name="second")(y), name="backbone")


def toy_segmenter():
    """Layers of one class in two models, and a bare layer."""
    image = keras.Input((None, None, 3))
    x = toy_backbone()(image)
    x = ConvNorm(5, 1, name="fusion")(x)
    model = keras.Model(image, keras.layers.Conv2D(2, 1, name="logits")(x), name="segmenter")
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_names_say_which_weight_it_is(suffix, tmp_path):
    model = toy_segmenter()
    path = tmp_path / f"x{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    checkpoint = read_keras_file(path)
    names = keras_names(model)
    assert set(checkpoint.arrays) == set(names)
    assert sorted(names.values()) == sorted(weight.path for weight in model.weights)
    assert names["second/normalization/1"] == "second/normalization/beta"
    assert names["logits/0"] == "logits/kernel"
    weights = {weight.path: weight.numpy() for weight in model.weights}
    for name, path in names.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], weights[path], err_msg=name)


def test_a_backbone_has_the_same_names_alone(tmp_path):
    model = toy_segmenter()
    inner = model.get_layer("backbone")
    inner.save_weights(tmp_path / "x.weights.h5")
    arrays = read_keras_file(tmp_path / "x.weights.h5").arrays
    assert set(arrays) == set(keras_names(inner)) < set(keras_names(model))


def test_training_state_is_not_a_weight(tmp_path):
    model = toy_backbone()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "x.keras")
    checkpoint = read_keras_file(tmp_path / "x.keras")
    assert set(checkpoint.arrays) == set(keras_names(model))
    assert checkpoint.beside["optimizer"] == "not part of the layers"


def test_bfloat16(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16", name="d")])
    model.get_layer("d").kernel.assign([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.5]])
    model.save_weights(tmp_path / "x.weights.h5")
    array = read_keras_file(tmp_path / "x.weights.h5").arrays["d/0"]
    assert array.dtype == "float32"
    np.testing.assert_array_equal(array, [[1.0, 2.0], [3.0, 4.0], [-5.0, 0.5]])


def test_random_generators_are_not_weights(tmp_path):
    path = tmp_path / "x.weights.h5"
    toy_backbone().save_weights(path)

    def change(file):  # As some versions of Keras store the seed of a dropout.
        file.create_group("layers/dropout/vars")
        file["layers/dropout/vars"].attrs["name"] = "dropout"
        file["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], "uint32")
        file["layers/dropout/seed_generator/vars"].attrs["name"] = "seed_generator"

    edit(path, change)
    checkpoint = read_keras_file(path)
    assert set(checkpoint.arrays) == set(keras_names(toy_backbone()))
    assert checkpoint.beside["dropout/seed_generator"] == "state of a random generator"


def test_truncated(tmp_path):
    path = tmp_path / "x.weights.h5"
    toy_backbone().save_weights(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_keras_file(path)


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_weights_in_other_files_are_refused(kind, tmp_path):
    path, other = tmp_path / "x.weights.h5", tmp_path / "other.h5"
    toy_backbone().save_weights(path)
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(4, "float32")

    def change(file):
        group = file["layers/conv_norm/normalization/vars"]
        del group["0"]
        if kind == "external":
            group.create_dataset("0", (4,), "float32", external=[(other, 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "float32")
            layout[:] = h5py.VirtualSource(other, "secret", (4,))
            group.create_virtual_dataset("0", layout)

    edit(path, change)
    with pytest.raises(UserError, match="points to another file"):
        read_keras_file(path)


def test_links_to_other_files_are_refused(tmp_path):
    path, other = tmp_path / "x.weights.h5", tmp_path / "other.h5"
    toy_backbone().save_weights(path)
    toy_backbone().save_weights(tmp_path / "y.weights.h5")
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(4, "float32")

    def change(file):
        group = file["layers/conv_norm/normalization/vars"]
        del group["0"]
        group["0"] = h5py.ExternalLink(str(other), "secret")

    edit(path, change)
    with pytest.raises(UserError, match="points to another file"):
        read_keras_file(path)


def test_layouts_that_are_not_known(tmp_path):
    path = tmp_path / "x.weights.h5"
    toy_backbone().save_weights(path)
    edit(path, lambda file: file["layers/conv_norm/vars"].attrs.pop("name"))
    with pytest.raises(UserError, match="lacks the names of the layers"):
        read_keras_file(path)
    with h5py.File(path, "w") as file:
        file["model_weights/conv/kernel"] = np.ones(2)
    with pytest.raises(UserError, match="no weights in Keras 3's layout"):
        read_keras_file(path)
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(UserError, match="is damaged"):
        read_keras_file(tmp_path / "x.keras")
