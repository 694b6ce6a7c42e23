"""SavedModels: images in, logits out, with the classes beside them."""

import json
import os
import pathlib
import shutil

import keras
import tensorflow as tf

from kseg.errors import UserError
from kseg.evaluation.metrics import MeanIoU
from kseg.runs import Classes
from kseg.segmenters import inference_model

_CLASSES = "classes.json"


def export(segmenter, path, classes, *, overwrite=False):
    """Writes a SavedModel for serving.

    Its function `serve` (and the signature `serving_default`) takes RGB images `(batch, height,
    width, 3)` in 0 to 255 of any size, float32; `serve_uint8` takes uint8. Both give float32
    logits `(batch, height, width, num_classes)` at the size of the images. There is no projector,
    no auxiliary head and no memory bank in it. Class names and palette are in
    `assets/classes.json`.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`.
        path: folder to write. It is complete or not there at all.
        classes: `kseg.runs.Classes`.
        overwrite: bool, replace what is there.

    Raises:
        UserError: if the folder exists and `overwrite` is False, or is no SavedModel.
    """
    path = pathlib.Path(path)
    if path.exists():
        if not overwrite:
            raise UserError(f"{path} exists already. Use --overwrite to replace it")
        if not (path / "saved_model.pb").exists() and any(path.iterdir()):
            raise UserError(f"{path} exists and is no SavedModel: it is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    model = inference_model(segmenter)
    module = tf.Module()
    module.variables_ = [variable.value for variable in model.variables]
    module.class_names = [tf.constant(name) for name in classes.names]

    def serve(images):
        return model(images, training=False)

    module.serve = _served(serve, "float32")
    module.serve_uint8 = _served(serve, "uint8")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    text = json.dumps({"names": classes.names, "palette": classes.palette}) + "\n"
    (unfinished / _CLASSES).write_text(text)
    module.classes = tf.saved_model.Asset(str(unfinished / _CLASSES))
    try:
        tf.saved_model.save(
            module,
            str(unfinished / "model"),
            signatures={"serving_default": module.serve, "serving_uint8": module.serve_uint8},
        )
        if path.exists():
            shutil.rmtree(path)
        os.replace(unfinished / "model", path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load(path):
    """Loads an exported SavedModel as a compiled Keras model.

    Args:
        path: folder that `export` wrote.

    Returns:
        `ServedModel`: `predict` and calls give logits; `evaluate(dataset)` gives the mean IoU.

    Raises:
        UserError: if there is no such SavedModel.
    """
    path = pathlib.Path(path)
    try:
        classes = Classes(**json.loads((path / "assets" / _CLASSES).read_text()))
        loaded = tf.saved_model.load(str(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a SavedModel of kseg ({error}). scripts/export.py writes one"
        ) from None
    model = ServedModel(loaded, classes)
    model.compile()
    return model


class ServedModel(keras.Model):
    """A SavedModel with Keras' `predict` and `evaluate`.

    Args:
        loaded: what `tf.saved_model.load` gives.
        classes: `kseg.runs.Classes`.
    """

    def __init__(self, loaded, classes):
        super().__init__(name="served", dtype="float32")
        self._loaded = loaded
        self.classes = classes
        self.mean_iou = MeanIoU(len(classes))
        self.built = True

    @property
    def metrics(self):
        """What `evaluate` reports."""
        return [self.mean_iou]

    def call(self, images, training=None):
        """Float32 logits `(batch, height, width, num_classes)` of uint8 or float images."""
        serve = self._loaded.serve_uint8 if images.dtype == "uint8" else self._loaded.serve
        return serve(images)

    def test_step(self, data):
        """Counts a batch `{"image", "label"}` or `(image, label)`."""
        if isinstance(data, dict):
            images, labels = data["image"], data["label"]
        else:
            images, labels = data[:2]
        self.mean_iou.update_state(labels, self(images))
        return {"mean_iou": self.mean_iou.result()}

    def predict_step(self, data):
        """Logits of a batch: images, or a dict or tuple with them first."""
        if isinstance(data, dict):
            return self(data["image"])
        return self(data[0] if isinstance(data, tuple) else data)


def _served(function, dtype):
    signature = [tf.TensorSpec((None, None, None, 3), dtype, name="images")]
    return tf.function(function, input_signature=signature, autograph=False)
