import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kseg import serving
from kseg.classes import Classes
from kseg.errors import UserError
from kseg.evaluation.evaluator import Evaluator
from kseg.segmenters import build_segmenter, inference_model
from pipelines import pictures
from tests.commands.tiny_run import scramble
from tests.tiny_networks import tiny_backbone

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = Classes(["road", "sky", "tree"], [[128, 64, 128], [70, 130, 180], [0, 100, 0]])


def tiny_segmenter(num_classes=3):
    """A segmenter with all that a SavedModel leaves out: dropout, auxiliary head, projectors."""
    segmenter = build_segmenter(
        tiny_backbone(),
        "ocr",
        num_classes,
        head_arguments={"channels": 8, "key_channels": 4, "dropout": 0.3},
        projections=("c2", "c4"),
        embedding_dim=8,
    )
    scramble(segmenter, np.random.default_rng(0))
    return segmenter


def batch(size=(33, 47), count=2, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, *size, 3)).astype("uint8")
    label = rng.integers(0, 3, (count, *size)).astype("uint8")
    label[:, :5] = 255
    return {"image": image, "label": label, "id": np.array([f"image {i}" for i in range(count)])}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    keras.utils.set_random_seed(0)
    segmenter = tiny_segmenter()
    path = tmp_path_factory.mktemp("export") / "deep" / "model"
    serving.export_saved_model(segmenter, path, CLASSES)
    return segmenter, path


def test_folder_is_complete_and_alone(exported):
    _, path = exported
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    found = json.loads((path / "assets" / "classes.json").read_text())
    assert (found["names"], found["palette"]) == (CLASSES.names, CLASSES.palette)


def test_holds_what_prediction_needs_and_no_more(exported):
    segmenter, path = exported
    names = [name for name, _ in tf.train.list_variables(str(path / "variables" / "variables"))]
    kept = [name for name in names if name.startswith("weights/")]
    assert len(kept) == len(inference_model(segmenter).weights) < len(segmenter.weights)
    assert set(names) - set(kept) <= {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert any("embedding" in weight.path for weight in segmenter.weights)
    for variable in tf.saved_model.load(str(path)).weights:
        assert "embedding" not in variable.name


def test_signatures_without_kseg(exported):
    segmenter, path = exported
    loaded = tf.saved_model.load(str(path))
    images = batch()["image"]
    expected = inference_model(segmenter)(images)
    assert set(loaded.signatures) == {
        f"serving_{kind}" for kind in ("default", "float", "image", "bytes")
    }
    found = loaded.signatures["serving_default"](images=tf.constant(images))["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    found = loaded.signatures["serving_float"](images=tf.constant(images, "float32"))["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert [name.decode() for name in loaded.class_names().numpy()] == CLASSES.names
    np.testing.assert_array_equal(loaded.palette(), CLASSES.palette)


def test_network_stands_in_the_file_once(exported):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((exported[1] / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    assert sum(any(node.op == "Conv2D" for node in f.node_def) for f in functions) == 1


FRESH = """
import sys
import numpy as np
from kseg import serving

path, inputs, outputs = sys.argv[1:]
model = serving.load_saved_model(path)
with np.load(inputs) as arrays:
    found = {name: np.asarray(model(images)) for name, images in arrays.items()}
np.savez(outputs, **found)
"""


def test_fresh_process_gives_the_same_logits_at_odd_sizes(exported, tmp_path):
    segmenter, path = exported
    sizes = [(33, 47), (64, 32), (51, 99)]
    inputs = {f"{h}x{w}": batch((h, w))["image"] for h, w in sizes}
    inputs["float"] = inputs["33x47"].astype("float32") + 0.25
    np.savez(tmp_path / "in.npz", **inputs)
    files = [tmp_path / "in.npz", tmp_path / "out.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", FRESH, path, *files], check=True, env=environment)
    model = inference_model(segmenter)
    with np.load(tmp_path / "out.npz") as found:
        for name, images in inputs.items():
            assert found[name].dtype == np.float32
            assert found[name].shape == (*images.shape[:3], 3)
            np.testing.assert_allclose(found[name], model(images), rtol=1e-3, atol=1e-3)


def test_one_image_and_encoded_bytes_get_classes(exported):
    segmenter, path = exported
    image = batch((33, 47), seed=5)["image"][0]
    signatures = tf.saved_model.load(str(path)).signatures
    logits = inference_model(segmenter)(image[None])[0].numpy().astype("float64")
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    confidence = (odds / odds.sum(axis=-1, keepdims=True)).max(axis=-1)
    png = tf.io.encode_png(image)
    jpeg = tf.io.encode_jpeg(image)
    for found in (
        signatures["serving_image"](image=tf.constant(image)),
        signatures["serving_bytes"](encoded=png),
    ):
        assert found["classes"].dtype == "uint8"
        np.testing.assert_array_equal(found["classes"], logits.argmax(axis=-1))
        np.testing.assert_allclose(found["confidence"], confidence, atol=1e-3)
    decoded = signatures["serving_image"](image=pictures.read(jpeg.numpy()).pixels)
    found = signatures["serving_bytes"](encoded=jpeg)
    np.testing.assert_array_equal(found["classes"], decoded["classes"])


@pytest.mark.parametrize("shape", [(8, 9, 3), (1, 8, 9, 1), (1, 8, 9, 4), (1, 1, 8, 9, 3)])
def test_images_of_other_shapes_are_an_error(exported, shape):
    # Without a check in the graph the first ends the process, and grey images get labels.
    signatures = tf.saved_model.load(str(exported[1])).signatures
    for name, dtype in (("serving_default", "uint8"), ("serving_float", "float32")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"Shape of .*expected shape"):
            signatures[name](images=tf.zeros(shape, dtype))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Shape of .*expected shape"):
        signatures["serving_image"](image=tf.zeros(shape[1:], "uint8"))
    model = serving.load_saved_model(exported[1])
    with pytest.raises(ValueError, match=r"must be RGB, \(batch, height, width, 3\)"):
        model(np.zeros(shape, "uint8"))
    with pytest.raises(ValueError, match=r"values from 0 to 255. Received: bool"):
        model(np.zeros((1, 8, 9, 3), bool))
    model.predict(batch(count=1)["image"], verbose=0)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"hape"):
        model.predict(np.zeros(shape, "uint8"), verbose=0)


def test_float_images_in_0_to_1_are_an_error(exported):
    model = serving.load_saved_model(exported[1])
    images = batch(count=1)["image"]
    model(images.astype("float32"))
    for wrong in (images / 255, images / 127.5 - 1):
        with pytest.raises(tf.errors.InvalidArgumentError, match="values from 0 to 255"):
            model(wrong)


def batches():
    """Three batches, one of them of another size."""
    items = [batch(seed=0), batch(seed=1, count=1), batch((20, 65), seed=2)]
    signature = {
        "image": tf.TensorSpec((None, None, None, 3), "uint8"),
        "label": tf.TensorSpec((None, None, None), "uint8"),
        "id": tf.TensorSpec((None,), "string"),
    }
    return tf.data.Dataset.from_generator(lambda: iter(items), output_signature=signature)


def test_evaluate_gives_the_mean_iou_of_the_run(exported):
    segmenter, path = exported
    expected = Evaluator(inference_model(segmenter), 3)(batches()).scores.mean_iou
    assert 0 < expected < 1
    logits = inference_model(segmenter)(batch()["image"])
    assert len(np.unique(np.argmax(logits, axis=-1))) > 1, "the test would be weak"
    model = serving.load_saved_model(path)
    for dataset in (batches(), batches().map(lambda b: (b["image"], b["label"]))):
        found = model.evaluate(dataset, verbose=0)
        assert isinstance(found, float)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    named = model.evaluate(batches(), verbose=0, return_dict=True)
    np.testing.assert_allclose(named["mean_iou"], expected, atol=1e-6)
    again = Evaluator(model, 3)(batches()).scores.mean_iou
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_predict(exported):
    segmenter, path = exported
    model = serving.load_saved_model(path)
    images = batch(count=3)["image"]
    expected = inference_model(segmenter)(images)
    for data in (
        images,
        images.astype("float64"),
        tf.data.Dataset.from_tensor_slices({"image": images}).batch(2),
        tf.data.Dataset.from_tensor_slices(images).batch(2),
    ):
        found = model.predict(data, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_classes_of_the_loaded_model(exported):
    model = serving.load_saved_model(exported[1])
    assert model.classes == CLASSES


@pytest.mark.parametrize("name", ["model [v2]", "a*b?"])
def test_a_folder_whose_name_reads_like_a_pattern(exported, tmp_path, name):
    _, path = exported
    shutil.copytree(path, tmp_path / name)
    loaded, other = serving.load_saved_model(path), serving.load_saved_model(tmp_path / name)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3)).astype("uint8")
    np.testing.assert_array_equal(other.predict(images), loaded.predict(images))
    assert other.classes == loaded.classes


def test_loaded_model_is_not_trained(exported):
    images = batch()
    with pytest.raises(NotImplementedError, match="cannot be trained"):
        serving.load_saved_model(exported[1]).fit(images["image"], images["label"], verbose=0)


def test_does_not_change_the_segmenter(exported):
    segmenter, path = exported
    before = [weight.numpy() for weight in segmenter.weights]
    model = serving.load_saved_model(path)
    model(batch()["image"], training=True)
    for weight, value in zip(segmenter.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def small_segmenter(num_classes=3):
    image = keras.Input((None, None, 3), name="image")
    outputs = {
        name: keras.layers.Conv2D(num_classes, 1, name=name)(image)
        for name in ("logits", "aux_logits")
    }
    return keras.Model(image, outputs)


def test_leaves_out_an_auxiliary_head(tmp_path):
    serving.export_saved_model(small_segmenter(), tmp_path / "model", CLASSES)
    variables = tf.saved_model.load(str(tmp_path / "model")).weights
    assert sorted(variable.name for variable in variables) == ["logits/bias:0", "logits/kernel:0"]


def test_overwrites_only_when_asked(tmp_path):
    path = tmp_path / "model"
    path.mkdir()  # An empty folder is no obstacle.
    serving.export_saved_model(small_segmenter(), path, CLASSES)
    before = serving.load_saved_model(path)(batch()["image"])
    with pytest.raises(UserError, match=r"holds a SavedModel already\. Use `overwrite=True`"):
        serving.export_saved_model(small_segmenter(), path, CLASSES)
    np.testing.assert_array_equal(serving.load_saved_model(path)(batch()["image"]), before)
    serving.export_saved_model(small_segmenter(), path, CLASSES, overwrite=True)
    assert not np.allclose(serving.load_saved_model(path)(batch()["image"]), before)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_replaces_nothing_that_is_no_saved_model(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no SavedModel\. Give another folder"):
        serving.export_saved_model(small_segmenter(), tmp_path, CLASSES, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        serving.export_saved_model(
            small_segmenter(), tmp_path / "notes.txt", CLASSES, overwrite=True
        )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model"
    serving.export_saved_model(small_segmenter(), path, CLASSES)

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        serving.export_saved_model(small_segmenter(), path, CLASSES, overwrite=True)
    serving.load_saved_model(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_failed_replacement_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model"
    serving.export_saved_model(small_segmenter(), path, CLASSES)
    before = serving.load_saved_model(path)(batch()["image"])

    def fail(path):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        serving.export_saved_model(small_segmenter(), path, CLASSES, overwrite=True)
    np.testing.assert_array_equal(serving.load_saved_model(path)(batch()["image"]), before)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_works_where_it_is_moved_to(exported, tmp_path):
    segmenter, path = exported
    copy = shutil.copytree(path, tmp_path / "moved")
    images = batch()["image"]
    model = serving.load_saved_model(copy)
    np.testing.assert_allclose(
        model(images), inference_model(segmenter)(images), rtol=1e-3, atol=1e-3
    )
    assert model.classes == CLASSES


def test_names_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder"):
        serving.export_saved_model(small_segmenter(), tmp_path / "file" / "model", CLASSES)


def test_refuses_other_classes(tmp_path):
    with pytest.raises(ValueError, match="must have the 3 classes"):
        serving.export_saved_model(small_segmenter(4), tmp_path / "model", CLASSES)


def damage_nothing_there(path):
    return path / "elsewhere", "There is no SavedModel"


def damage_other_folder(path):
    (path / "folder").mkdir()
    return path / "folder", "is not a SavedModel of kseg"


def damage_weights(path):
    file = next((path / "model" / "variables").glob("*.data-*"))
    file.write_bytes(file.read_bytes()[:10])
    return path / "model", "is damaged"


def damage_graph(path):
    file = path / "model" / "saved_model.pb"
    file.write_bytes(b"\xff" * 50)
    return path / "model", "is damaged"


def damage_classes(path):
    file = path / "model" / "assets" / "classes.json"
    file.write_text(json.dumps({"names": ["road"], "palette": [[1, 2, 3]]}))
    return path / "model", "classes.json has 1 classes, the model 3"


def damage_class_name(path):
    file = path / "model" / "assets" / "classes.json"
    changed = json.loads(file.read_text())
    changed["names"][1] = chr(ord(changed["names"][1][0]) ^ 1) + changed["names"][1][1:]
    file.write_text(json.dumps(changed))
    return path / "model", "classes were changed: checksum"


def damage_classes_text(path):
    (path / "model" / "assets" / "classes.json").write_text("[1")
    return path / "model", "is damaged"


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_there,
        damage_other_folder,
        damage_weights,
        damage_graph,
        damage_classes,
        damage_class_name,
        damage_classes_text,
    ],
)
def test_load_names_what_is_wrong(tmp_path, damage):
    serving.export_saved_model(small_segmenter(), tmp_path / "model", CLASSES)
    path, message = damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        serving.load_saved_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_with_characters_of_patterns(tmp_path):
    """TensorFlow's loader takes the name of a folder for a pattern of names."""
    path = tmp_path / "my [model] *?" / "of a"
    segmenter = small_segmenter()
    serving.export_saved_model(segmenter, path, CLASSES)
    images = batch()["image"]
    expected = inference_model(segmenter)(images)
    np.testing.assert_allclose(
        serving.load_saved_model(path)(images), expected, rtol=1e-5, atol=1e-5
    )
