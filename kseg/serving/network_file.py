"""Network files with a classes file beside them: code shared by LiteRT, ONNX and OpenVINO."""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import cv2
import numpy as np

from kseg import files
from kseg.classes import Classes
from kseg.errors import UserError, option
from kseg.pixel_format import PixelFormat
from kseg.serving.checks import CLASSES_SUFFIX, check_file_target, exportable_model


@dataclasses.dataclass(frozen=True)
class Runner:
    """A network file opened in its runtime.

    Attributes:
        size: `(height, width)` that images must have, with a batch size of 1; None: any size and
            batch size.
        outputs: tuple of str, the names of the outputs: `logits`, or `classes` and `confidence`.
        run: function from images, `(batch, height, width, channels)`, to a dict from the name of an
            output to its array.
    """

    size: tuple | None
    outputs: tuple
    run: Callable


class PortableModel:
    """Network loaded from a file for LiteRT, ONNX or OpenVINO.

    Args:
        classes: `kseg.classes.Classes`.
        runner: `Runner`.
        value_range: as for `kseg.serving.export_saved_model`.
        pixel_format: `kseg.pixel_format.PixelFormat` of the images; None: 8-bit RGB.

    Attributes:
        classes: `kseg.classes.Classes`.
        size: `(height, width)` that the images of a call must have; None: any.
        value_range, pixel_format: as the arguments.
        result: `"logits"`, or `"classes"` for a file that gives classes and confidence.

    Call arguments:
        images: array `(batch, height, width, channels)`, uint8 RGB or of the pixel format; the
            batch size must be 1 unless `size` is None.

    Returns:
        float32 array of logits `(batch, height, width, num_classes)`.

    Raises:
        UserError: if the file gives classes and confidence; see `classify`.
    """

    def __init__(self, classes, runner, value_range=None, pixel_format=None):
        self.classes, self.size, self._runner = classes, runner.size, runner
        self.value_range, self.pixel_format = value_range, pixel_format
        self.result = "logits" if "logits" in runner.outputs else "classes"

    def __call__(self, images):
        """Computes the logits of images."""
        if self.result != "logits":
            raise UserError(
                "This network gives classes and confidence, not logits. Use its `classify`, or "
                f"write it again with {option('result', 'logits')}"
            )
        return self._runner.run(images)["logits"]

    def classify(self, images):
        """Labels images of the network's image size, see `size`.

        Args:
            images: as for a call.

        Returns:
            `(labels, confidence)`: uint8 class indices and the float32 probability of each, both
            `(batch, height, width)`.
        """
        found = self._runner.run(images)
        if self.result == "classes":
            return found["classes"], found["confidence"]
        logits = found["logits"]
        return np.argmax(logits, axis=-1).astype("uint8"), confidence_of(logits)

    def label(self, image):
        """Labels an image of any size, resized to the network's image size and back.

        Args:
            image: uint8 array `(height, width, channels)`.

        Returns:
            uint8 array `(height, width)` of class indices.
        """
        return self.label_with_confidence(image)[0]

    def label_with_confidence(self, image):
        """Labels an image as `label` does.

        Returns:
            `(labels, confidence)`: uint8 class indices and the float32 probability of each, both
            `(height, width)`.
        """
        height, width = image.shape[:2]
        return tuple(
            cv2.resize(result[0], (width, height), interpolation=cv2.INTER_NEAREST)
            for result in self.classify(self.fit(image)[None])
        )

    def fit(self, image):
        """Resizes an image `(height, width, channels)` to the network's image size, if it has one.

        Returns:
            array `(height, width, channels)` of the same dtype.
        """
        return image if self.size is None else resize(image, self.size)


def resize(image, size):
    """Resizes an image bilinearly.

    Args:
        image: array `(height, width, channels)`.
        size: `(height, width)` of the result.

    Returns:
        array `(*size, channels)` of the same dtype; the image itself if it has that size.
    """
    if tuple(size) == image.shape[:2]:
        return image
    resized = cv2.resize(
        np.ascontiguousarray(image), tuple(size)[::-1], interpolation=cv2.INTER_LINEAR
    )
    return resized.reshape(*size, image.shape[2])  # OpenCV drops the axis of a single channel.


def confidence_of(logits):
    """Computes the softmax of the largest logit.

    Args:
        logits: float32 array `(..., num_classes)`.

    Returns:
        float32 array `(...)`.
    """
    return (1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)).astype("float32")


def export_file(
    segmenter, path, classes, size, convert, *, target, result, value_range=None, overwrite=False
):
    """Converts the inference view of a segmenter and writes it with a classes file beside it.

    Args:
        segmenter: float32 model from `kseg.segmenters.build_segmenter`.
        path: file to write, atomically.
        classes: `kseg.classes.Classes`.
        size: `(height, width)` of the images, with a batch size of 1; None: any image and batch
            size.
        convert: function from a `tf.Module` to a dict from the path of a file to its bytes. The
            module's `serve` is a `tf.function` with one input, uint8 `images`, and a dict of
            outputs.
        target: str, name of the runtime, for error messages.
        result, value_range, overwrite: as for `kseg.serving.litert.export_tflite`.

    Raises:
        UserError, ValueError: as in `kseg.serving.litert.export_tflite`.
    """
    path = pathlib.Path(path)
    check_file_target(path, overwrite)
    model = exportable_model(segmenter, classes, f"a network for {target}")
    if any(layer.compute_dtype != "float32" for layer in model._flatten_layers(include_self=False)):
        raise ValueError(f"A network for {target} must compute in float32")
    from kseg.segmenters import pixel_format_of  # Imported late: exported files run without Keras.

    try:
        contents = convert(_module(model, size, result))
    except UserError:
        raise
    except Exception as error:  # Converters raise exceptions of any type.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The converter to {target} cannot do this network ({reason})") from None
    digests = [hashlib.sha256(content).hexdigest() for content in contents.values()]
    pixels = pixel_format_of(model)
    described = {} if pixels is None else {"pixels": pixels.to_dict()}
    digests += _digests_beside(path, classes, value_range, pixels, contents)
    text = classes.to_json(value_range=value_range, model_sha256=digests, **described)
    _write({path.with_suffix(CLASSES_SUFFIX): text.encode(), **contents})


def check_calibration(images, segmenter):
    """Checks images for calibration.

    Args:
        images: list of arrays `(height, width, channels)`.
        segmenter: model whose input has their channels.

    Raises:
        ValueError: if there is no image.
        UserError: if one has another number of channels.
    """
    if not len(images):
        raise ValueError("`quantize='int8'` needs images: `calibration`. Received none")
    expected, found = segmenter.input.shape[-1], sorted({image.shape[-1] for image in images})
    if found != [expected]:
        raise UserError(
            f"Images for calibration must have the network's {expected} channels. Received: "
            f"{', '.join(map(str, found))}. Give {option('calibrate')} the data of its training"
        )


def _module(model, size, result):
    """Wraps an inference model as a `tf.Module` with the function that is converted."""
    import tensorflow as tf  # Imported here, because exported files run without it.

    from kseg.evaluation.evaluator import images_spec
    from kseg.segmenters import pixel_format_of

    spec = images_spec(pixel_format_of(model))
    shape = (None, None, None) if size is None else (1, *size)
    spec = tf.TensorSpec((*shape, spec.shape[-1]), spec.dtype, name="images")

    @tf.function(input_signature=[spec], autograph=False)
    def serve(images):
        logits = model(images, training=False)
        if result == "logits":
            return {"logits": logits}
        return {
            "classes": tf.cast(tf.argmax(logits, axis=-1, output_type="int32"), "uint8"),
            "confidence": tf.reduce_max(tf.nn.softmax(logits), axis=-1),
        }

    module = tf.Module()
    module.weights, module.serve = [weight.value for weight in model.weights], serve
    return module


def _digests_beside(path, classes, value_range, pixels, written):
    """Returns the digests of the other network files that share the classes file.

    `model.tflite` and `model.onnx` share `model.classes.json`.

    Args:
        path: file that is about to be written.
        classes, value_range: as for `export_file`; network files that differ in them are omitted.
        pixels: `kseg.pixel_format.PixelFormat` or None, likewise.
        written: paths of the files that are about to be written.

    Returns:
        list of str.
    """
    try:
        known, more = Classes.from_json(path.with_suffix(CLASSES_SUFFIX).read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    same_classes = (known.names, known.palette) == (classes.names, classes.palette)
    same_range = list(more.get("value_range") or []) == list(value_range or [])
    try:
        same_pixels = PixelFormat.from_dict(more.get("pixels")) == pixels
    except (ValueError, KeyError, TypeError):
        same_pixels = False
    if not (same_classes and same_range and same_pixels):
        return []
    others = [f for f in path.parent.iterdir() if f.stem == path.stem and f not in written]
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in others if f.is_file()]
    return [digest for digest in digests if digest in more.get("model_sha256", [])]


def _write(contents):
    """Writes files to one folder; none is ever left partially written."""
    with contextlib.ExitStack() as stack:
        for file, content in contents.items():
            stack.enter_context(files.replace_file(file)).write_bytes(content)
