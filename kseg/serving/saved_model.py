"""SavedModels: images in, logits out, with the classes beside them."""

import contextlib
import pathlib
import re
import tempfile

import keras
import numpy as np
import tensorflow as tf

from kseg import files
from kseg.classes import Classes
from kseg.errors import UserError
from kseg.evaluation.evaluator import images_spec
from kseg.metrics import MeanIoU
from kseg.pixel_format import PixelFormat
from kseg.segmenters import pixel_format_of
from kseg.serving.checks import (
    CLASSES_FILE,
    broken_saved_model,
    check_folder_target,
    exportable_model,
    read_classes,
    saved_model_folder,
)
from kseg.serving.serving_input import check_images, decode


def export_saved_model(segmenter, path, classes, *, value_range=None, overwrite=False):
    """Writes a SavedModel for serving.

    The signature `serving_default` takes RGB images `images`, uint8 `(batch, height, width, 3)` of
    any size; `serving_float` takes float32 in 0 to 255. Both return `logits`, float32 `(batch,
    height, width, num_classes)` at the size of the images. `serving_image` takes one `image`, uint8
    `(height, width, 3)`; `serving_bytes` takes `encoded`, a scalar string with the bytes of a JPEG
    or PNG file, which is decoded upright, see `kseg.serving.serving_input.decode`. Both return
    `classes`, uint8 `(height, width)`, and `confidence`, the probability of that class, float32 of
    the same shape. Images of another shape and float images outside 0 to 255 raise a descriptive
    error.

    A network for other images (its `kseg.pixel_format.PixelFormat`) takes its channels and dtype in
    place of RGB and uint8; `serving_float` takes the same values as float32, and there is no
    `serving_bytes`. `pixel_format()` and `assets/classes.json` (`pixels`) say channels, dtype,
    range and statistics.

    On the loaded object, `serve` takes either dtype; `class_names()` returns the names, string
    `(num_classes,)`, `palette()` the colors, uint8 `(num_classes, 3)`, and `value_range()` the
    range of deep images, float64 `(2,)`, or `(0,)` without a range. All of these are also stored
    in `assets/classes.json`. The SavedModel contains only the weights that these logits need: no
    projector, no memory bank, and no auxiliary head, except for the coarse logits of OCR, from
    which its context is computed.

    Args:
        segmenter: model from `kseg.segmenters.build_segmenter`.
        path: folder to write, atomically; an existing SavedModel is replaced only once the new one
            is complete.
        classes: `kseg.classes.Classes`.
        value_range: `(low, high)`, the values in images of more than 8 bits per channel that were
            mapped to 0 and 255 in the training data; None if it had no such images, or if the range
            is unknown.
        overwrite: bool, whether to replace an existing SavedModel.

    Raises:
        UserError: if `path` is a SavedModel and `overwrite` is False, has other content, or cannot
            be created.
        ValueError: if the segmenter and `classes` differ in the number of classes.
    """
    path = pathlib.Path(path)
    check_folder_target(path, overwrite)
    model = exportable_model(segmenter, classes, "a SavedModel")
    pixels = pixel_format_of(segmenter)
    with files.replace_folder(path) as new:
        # An asset keeps the name of the file that it is copied from.
        asset = pathlib.Path(tempfile.mkdtemp(dir=new.parent)) / CLASSES_FILE
        asset.write_text(classes.to_json(value_range=value_range, **_described(pixels)))
        module = _served_module(model, classes, value_range)
        module.classes = tf.saved_model.Asset(str(asset))
        signatures = {
            "serving_default": module.serve.get_concrete_function(images_spec(pixels, "images")),
            "serving_float": module.serve.get_concrete_function(_floats(pixels)),
            "serving_image": module.serve_image.get_concrete_function(),
        }
        if pixels is None:
            signatures["serving_bytes"] = module.serve_bytes.get_concrete_function()
        try:
            tf.saved_model.save(module, str(new), signatures=signatures)
        except tf.errors.OpError as error:  # For example a full disk; it names temporary paths.
            reason = error.message.rsplit("; ", 1)[-1]
            reason = re.sub(r" *\[Op:\w+\]$", "", reason)
            raise UserError(f"{path}: {reason}") from error


def load_saved_model(path):
    """Loads an exported SavedModel as a compiled Keras model.

    Args:
        path: folder written by `export_saved_model`, or by
            `kseg.serving.model_folders.export_model_folders`.

    Returns:
        `ServedModel`: `predict` and calls return logits; `evaluate(dataset)` returns the mean IoU.

    Raises:
        UserError: if there is no such SavedModel, or it is damaged.
    """
    path = saved_model_folder(path)
    classes, more = read_classes(path)
    try:
        with _without_pattern(path) as plain:
            loaded = tf.saved_model.load(str(plain))
        names = [name.decode() for name in loaded.class_names().numpy()]
        known = Classes(names, loaded.palette().numpy().tolist())
        # SavedModels of earlier versions lack it.
        known_range = loaded.value_range().numpy().tolist() if "value_range" in more else []
        value_range = list(more.get("value_range") or [])
        pixels = PixelFormat.from_dict(more.get("pixels"))
    except Exception as error:  # TensorFlow's readers raise IndexError, KeyError and more.
        raise broken_saved_model(path, error) from None
    if known != classes or known_range != value_range:
        raise UserError(
            f"{path} is damaged: assets/{CLASSES_FILE} has {len(classes)} classes, the model "
            f"{len(known)}, or their names or colors, or the range of deep images, differ. Write "
            "it again with `kseg export`"
        )
    model = ServedModel(loaded, classes, tuple(value_range) or None, pixels)
    # No XLA, which would compile the network again for every image size.
    model.compile(jit_compile=False)
    return model


@contextlib.contextmanager
def _without_pattern(path):
    """Yields an alternative path if TensorFlow's loader would read the folder's as a pattern."""
    if not re.search(r"[][*?{}\\]", str(path.absolute())):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / "model"
        link.symlink_to(path.absolute(), target_is_directory=True)
        yield link


class ServedModel(keras.Model):
    """SavedModel with Keras' `predict` and `evaluate`; it cannot be trained.

    `evaluate` takes batches `{"image", "label"}`, in which other keys are ignored, or `(image,
    label)`: image uint8 or float RGB `(batch, height, width, 3)` in 0 to 255, label int `(batch,
    height, width)`, 255 = ignored. Sizes may differ between batches. `predict` also takes images
    alone; because it concatenates the results, all images must have the same size.

    Args:
        loaded: the result of `tf.saved_model.load`.
        classes: `kseg.classes.Classes`.
        value_range: as for `export`.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB.

    Attributes:
        classes: `kseg.classes.Classes`.
        value_range: as for `export`.
        pixel_format: as the argument.
        signature: function of the signature `serving_default`.
    """

    def __init__(self, loaded, classes, value_range=None, pixel_format=None):
        super().__init__(name="served", dtype="float32")
        self._loaded = loaded
        self.classes = classes
        self.value_range = value_range
        self.pixel_format = pixel_format
        self.signature = loaded.signatures["serving_default"]
        self.mean_iou = MeanIoU(len(classes))
        self.built = True

    @property
    def metrics(self):
        """Metrics reported by `evaluate`."""
        return [self.mean_iou]

    def call(self, images, training=None):
        """Computes float32 logits `(batch, height, width, num_classes)`; ignores `training`.

        Raises:
            ValueError: if the images have another shape or are not numeric.
            tf.errors.InvalidArgumentError: if a wrong shape is detected only in the graph, or float
                images are not in 0 to 255, see `kseg.serving.serving_input.check_images`.
        """
        images = tf.convert_to_tensor(images)
        shape, pixels = images.shape, self.pixel_format
        if pixels is not None:
            return self._call_with_format(images)
        if shape.rank is not None and (shape.rank != 4 or shape[-1] not in (None, 3)):
            raise ValueError(
                f"Images must be RGB, (batch, height, width, 3). Received shape: {tuple(shape)}"
            )
        if not (images.dtype.is_integer or images.dtype.is_floating):
            raise ValueError(
                f"Images must hold values from 0 to 255. Received: {images.dtype.name}"
            )
        if images.dtype != "uint8":
            images = tf.cast(images, "float32")
        return self._loaded.serve(images)["logits"]

    def _call_with_format(self, images):
        """Computes the logits of images that are not 8-bit RGB."""
        shape, pixels = images.shape, self.pixel_format
        if shape.rank not in (None, 4) or shape[-1] not in (None, pixels.channels):
            raise ValueError(
                f"Images must be (batch, height, width, {pixels.channels}), {pixels}. Received "
                f"shape: {tuple(shape)}"
            )
        if images.dtype not in (pixels.dtype, "float32"):
            raise ValueError(f"Images must be {pixels}. Received: {images.dtype.name}")
        return self._loaded.serve(images)["logits"]

    def train_step(self, data):
        """Raises an error, because a SavedModel cannot be trained."""
        raise NotImplementedError("A SavedModel cannot be trained. Use `kseg train`")

    def test_step(self, data):
        """Updates the metrics with a batch."""
        if isinstance(data, dict):
            images, labels = data["image"], data["label"]
        else:
            images, labels = data[:2]
        self.mean_iou.update_state(labels, self(images))
        return {"mean_iou": self.mean_iou.result()}

    def predict_step(self, data):
        """Computes the logits of a batch: images, or a dict or tuple that contains them."""
        if isinstance(data, dict):
            return self(data["image"])
        return self(data[0] if isinstance(data, (tuple, list)) else data)


def _served_module(model, classes, value_range):
    """Builds the module to save, with the functions and weights of an inference model."""
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]

    # The network is stored only once for all signatures and dtypes.
    pixels = pixel_format_of(model)

    @tf.function(input_signature=[_floats(pixels)], autograph=False)
    def network(images):
        return model(images, training=False)

    network = network.get_concrete_function()

    @tf.function(autograph=False)
    def serve(images):
        return {"logits": network(tf.cast(check_images(images, pixels), "float32"))}

    def label(image):
        probabilities = tf.nn.softmax(network(tf.cast(image[None], "float32"))[0])
        return {
            "classes": tf.cast(tf.argmax(probabilities, axis=-1, output_type="int32"), "uint8"),
            "confidence": tf.reduce_max(probabilities, axis=-1),
        }

    image_spec = images_spec(pixels)
    image_spec = tf.TensorSpec(image_spec.shape[1:], image_spec.dtype, name="image")

    @tf.function(input_signature=[image_spec], autograph=False)
    def serve_image(image):
        return label(check_images(image, pixels))

    @tf.function(input_signature=[tf.TensorSpec((), "string", name="encoded")], autograph=False)
    def serve_bytes(encoded):
        return label(decode(encoded, value_range))

    @tf.function(input_signature=[], autograph=False)
    def pixel_format():
        of = {name: np.asarray(value) for name, value in pixels.to_dict().items()}
        return {name: tf.constant(value) for name, value in of.items()}

    @tf.function(input_signature=[], autograph=False)
    def class_names():
        return tf.constant(classes.names)

    @tf.function(input_signature=[], autograph=False)
    def palette():
        return tf.constant(classes.palette, "uint8")

    @tf.function(input_signature=[], autograph=False)
    def range_of_deep_images():
        return tf.constant(value_range or [], "float64")

    module.serve, module.class_names, module.palette = serve, class_names, palette
    module.value_range = range_of_deep_images
    module.serve_image = serve_image
    if pixels is None:
        module.serve_bytes = serve_bytes
    else:
        module.pixel_format = pixel_format
    return module


def _floats(pixels):
    return tf.TensorSpec(images_spec(pixels).shape, "float32", name="images")


def _described(pixels):
    return {} if pixels is None else {"pixels": pixels.to_dict()}
