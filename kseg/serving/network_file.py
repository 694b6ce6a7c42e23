"""Network files with a classes file beside them: code shared by LiteRT and ONNX."""

import contextlib
import hashlib
import pathlib

import cv2
import numpy as np

from kseg import files
from kseg.classes import Classes
from kseg.errors import UserError
from kseg.serving.checks import CLASSES_SUFFIX, check_file_target, exportable_model


class PortableModel:
    """Network loaded from a file for LiteRT or ONNX.

    Args:
        classes: `kseg.classes.Classes`.
        size: `(height, width)` that images must have; None: any.
        run: function from images to logits, with the shapes and dtypes of a call.
        value_range: as for `kseg.serving.export_saved_model`.

    Call arguments:
        images: uint8 array `(batch, height, width, 3)`; the batch size must be 1 unless `size` is
            None.

    Returns:
        float32 array of logits `(batch, height, width, num_classes)`.
    """

    def __init__(self, classes, size, run, value_range=None):
        self.classes, self.size, self._run = classes, size, run
        self.value_range = value_range

    def __call__(self, images):
        """Computes the logits of images."""
        return self._run(images)

    def label(self, image):
        """Labels an image of any size, resized to the network's image size and back.

        Args:
            image: uint8 RGB array `(height, width, 3)`.

        Returns:
            uint8 array `(height, width)` of class indices.
        """
        return self._label(image, lambda logits: (_classes(logits),))[0]

    def label_with_confidence(self, image):
        """Labels an image as `label` does.

        Returns:
            `(labels, confidence)`: uint8 class indices and the float32 probability of each, both
            `(height, width)`.
        """
        return self._label(image, lambda logits: (_classes(logits), confidence_of(logits)))

    def _label(self, image, results_of):
        height, width = image.shape[:2]
        if self.size not in (None, (height, width)):
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        return tuple(
            cv2.resize(result, (width, height), interpolation=cv2.INTER_NEAREST)
            for result in results_of(self(image[None])[0])
        )


def _classes(logits):
    return np.argmax(logits, axis=-1).astype("uint8")


def confidence_of(logits):
    """Computes the softmax of the largest logit.

    Args:
        logits: float32 array `(..., num_classes)`.

    Returns:
        float32 array `(...)`.
    """
    return (1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)).astype("float32")


def export_file(segmenter, path, classes, size, value_range, overwrite, target, convert):
    """Converts the inference view of a segmenter and writes it with a classes file beside it.

    Args:
        segmenter: float32 model from `kseg.segmenters.build_segmenter`.
        path: file to write, atomically.
        classes: `kseg.classes.Classes`.
        size: `(height, width)` of the images, with a batch size of 1; None: any image and batch
            size.
        value_range: as for `kseg.serving.export_saved_model`.
        overwrite: bool, whether to replace an existing file.
        target: str, name of the runtime, for error messages.
        convert: function from a `tf.function` with one input, uint8 `images`, to bytes.

    Raises:
        UserError, ValueError: as in `kseg.serving.litert.export_tflite`.
    """
    import tensorflow as tf  # Imported here, because exported files run without it.

    path = pathlib.Path(path)
    check_file_target(path, overwrite)
    model = exportable_model(segmenter, classes, f"a network for {target}")
    if any(layer.compute_dtype != "float32" for layer in model._flatten_layers(include_self=False)):
        raise ValueError(f"A network for {target} must compute in float32")
    shape = (None, None, None, 3) if size is None else (1, *size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, "uint8", name="images")], autograph=False)
    def serve(images):
        return {"logits": model(images, training=False)}

    try:
        content = convert(serve)
    except Exception as error:  # Converters raise exceptions of any type.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The converter to {target} cannot do this network ({reason})") from None
    digests = [hashlib.sha256(content).hexdigest(), *_digests_beside(path, classes, value_range)]
    text = classes.to_json(value_range=value_range, model_sha256=digests)
    _write({path.with_suffix(CLASSES_SUFFIX): text.encode(), path: content})


def _digests_beside(path, classes, value_range):
    """Returns the digests of the other network files that share the classes file.

    `model.tflite` and `model.onnx` share `model.classes.json`.

    Args:
        path: file that is about to be written.
        classes, value_range: as for `export_file`; network files that differ in them are omitted.

    Returns:
        list of str.
    """
    try:
        known, more = Classes.from_json(path.with_suffix(CLASSES_SUFFIX).read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    same_classes = (known.names, known.palette) == (classes.names, classes.palette)
    if not same_classes or list(more.get("value_range") or []) != list(value_range or []):
        return []
    others = [f for f in path.parent.iterdir() if f.stem == path.stem and f.name != path.name]
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in others if f.is_file()]
    return [digest for digest in digests if digest in more.get("model_sha256", [])]


def _write(contents):
    """Writes files to one folder; none is ever left partially written."""
    with contextlib.ExitStack() as stack:
        for file, content in contents.items():
            stack.enter_context(files.replace_file(file)).write_bytes(content)
