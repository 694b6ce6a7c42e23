"""Networks as one file for other runtimes: LiteRT (TFLite) and ONNX."""

import contextlib
import hashlib
import importlib.util
import os
import pathlib

import cv2
import numpy as np
import tensorflow as tf

from kseg import class_file, files
from kseg.errors import UserError
from kseg.finite import check_weights
from kseg.segmenters import inference_model

_OPSET = 18
_CLASSES = ".classes.json"


def export_tflite(segmenter, path, classes, size, *, overwrite=False):
    """Writes a float32 network for LiteRT, the runtime that was called TensorFlow Lite.

    Its input `images` is uint8 RGB `(1, height, width, 3)`, its output `logits` float32 `(1,
    height, width, num_classes)`. The names and colours of the classes go to a JSON file beside it,
    of the same name with `.classes.json` in place of the ending. Only operations built into LiteRT
    are used, so that an interpreter without TensorFlow runs it.

    Args:
        segmenter: float32 model from `kseg.segmenters.build_segmenter`.
        path: file to write. It is complete or not there at all.
        classes: `kseg.runs.Classes`.
        size: `(height, width)` of the images.
        overwrite: bool, replace the file that is there.

    Raises:
        UserError: if the file is there, cannot be written, or the converter cannot do this network.
        ValueError: if the segmenter computes in another precision, or has other classes.
    """

    def convert(function):
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()], function
        )
        return converter.convert()

    _export(segmenter, path, classes, size, overwrite, "LiteRT", convert)


def export_onnx(segmenter, path, classes, size=None, *, overwrite=False):
    """Writes a float32 network as ONNX, opset 18.

    Its input `images` is uint8 RGB `(batch, height, width, 3)`, its output `logits` float32
    `(batch, height, width, num_classes)`; names and colours are beside it as for `export_tflite`.

    Args:
        segmenter, path, classes, overwrite: as for `export_tflite`.
        size: `(height, width)` of the images, with a batch of one; or None: any size and batch.

    Raises:
        UserError: if tf2onnx is not installed; else as for `export_tflite`.
        ValueError: as for `export_tflite`.
    """
    if importlib.util.find_spec("tf2onnx") is None:
        raise UserError("ONNX needs the extra `onnx`: pip install kseg[onnx]")

    def convert(function):
        import onnx
        import tf2onnx

        # Else the converter keeps a copy of the graph for each pass over it, in half of its time.
        os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "FALSE")
        # Of any size, and fixed afterwards: what the converter makes of resizing between known
        # sizes is a rounded factor, which now and then comes out a pixel short.
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=_OPSET
        )
        _pad_explicitly(model.graph)
        if size is not None:
            shape = model.graph.input[0].type.tensor_type.shape
            for axis, length in zip(shape.dim, (1, *size, 3), strict=True):
                axis.dim_value = length
        onnx.checker.check_model(model)  # The converter passes over what it does not know.
        return model.SerializeToString()

    _export(segmenter, path, classes, None, overwrite, "ONNX", convert)


def load(path, *, threads=None):
    """Loads a file for LiteRT or ONNX, whichever it is, to be run on the CPU.

    Args:
        path: file that `export_tflite` or `export_onnx` wrote, with the classes beside it.
        threads: int, or None: as many as cores.

    Returns:
        `PortableModel`.

    Raises:
        UserError: if there is no such file, it is damaged, or the runtime is not installed.
    """
    path = pathlib.Path(path)
    try:
        text = path.with_suffix(_CLASSES).read_text()
        content = path.read_bytes()
        runtime = _litert if content[4:8] == b"TFL3" else _onnx_runtime
        digest = hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}). Write it with scripts/export.py"
        ) from None
    try:
        classes, more = class_file.from_text(text)
        if digest not in more.get("model_sha256", [digest]):
            raise ValueError(f"{path.with_suffix(_CLASSES).name} belongs to another file")
        return PortableModel(classes, *runtime(path, threads or os.cpu_count()))
    except UserError:
        raise
    except Exception as error:  # The runtimes raise whatever they like.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no file for LiteRT or ONNX, or is damaged ({reason}). Write it again with "
            "scripts/export.py"
        ) from None


class PortableModel:
    """A file for LiteRT or ONNX that is loaded.

    Args:
        classes: `kseg.runs.Classes`.
        size: `(height, width)` that images must have, or None: any.
        run: function of images, as a call takes them.

    Call arguments:
        images: uint8 array `(batch, height, width, 3)`, a batch of one if `size` is not None.

    Returns:
        float32 array of logits `(batch, height, width, num_classes)`.
    """

    def __init__(self, classes, size, run):
        self.classes, self.size, self._run = classes, size, run

    def __call__(self, images):
        """Logits of images."""
        return self._run(images)

    def label(self, image):
        """Labels an image of any size, which is resized to that of the file and back.

        Args:
            image: uint8 RGB array `(height, width, 3)`.

        Returns:
            uint8 array `(height, width)` of class numbers.
        """
        height, width = image.shape[:2]
        if self.size not in (None, (height, width)):
            image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        labels = np.argmax(self(image[None])[0], axis=-1).astype("uint8")
        return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)


def _litert(path, threads):
    """Size of the images, and a function from them to logits."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UserError("Running LiteRT files needs the extra `litert`: pip install kseg[litert]")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (images,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(values):
        interpreter.set_tensor(images["index"], values)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    return tuple(map(int, images["shape"][1:3])), run


def _onnx_runtime(path, threads):
    """Size of the images or None, and a function from them to logits."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError("Running ONNX needs the extra `onnx`: pip install kseg[onnx]")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    size = tuple(session.get_inputs()[0].shape[1:3])
    size = size if all(isinstance(length, int) for length in size) else None
    return size, lambda images: session.run(["logits"], {"images": images})[0]


def compare(expected, found):
    """Compares logits.

    Args:
        expected, found: float arrays `(..., num_classes)` of one shape.

    Returns:
        `(agreement, difference)`, floats: the part of the pixels that get the same class, and the
        largest absolute difference of logits.

    Raises:
        ValueError: if the shapes differ.
    """
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape:
        raise ValueError(
            f"The logits must have one shape. Received: {expected.shape}, {found.shape}"
        )
    same = np.argmax(expected, axis=-1) == np.argmax(found, axis=-1)
    return float(np.mean(same)), float(np.max(np.abs(expected - found)))


def _pad_explicitly(graph):
    """Replaces the automatic padding of ONNX convolutions, which runtimes refuse with a dilation.

    Only without a stride, where the padding does not depend on the size of the image.
    """
    import onnx

    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "Conv" or "auto_pad" not in attributes:
            continue
        if attributes["auto_pad"].s != b"SAME_UPPER" or set(attributes["strides"].ints) != {1}:
            continue
        extents = [
            rate * (length - 1)
            for length, rate in zip(
                attributes["kernel_shape"].ints, attributes["dilations"].ints, strict=True
            )
        ]
        pads = [extent // 2 for extent in extents] + [-(-extent // 2) for extent in extents]
        node.attribute.remove(attributes["auto_pad"])
        node.attribute.append(onnx.helper.make_attribute("pads", pads))


def _export(segmenter, path, classes, size, overwrite, target, convert):
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give a file to write")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already. Use --overwrite to replace it")
    model = inference_model(segmenter)
    if model.output.shape[-1] != len(classes):
        raise ValueError(
            f"The segmenter must have the {len(classes)} classes it is exported with. "
            f"Received: {model.output.shape[-1]}"
        )
    check_weights(model, f"a network for {target}")
    if any(layer.compute_dtype != "float32" for layer in model._flatten_layers(include_self=False)):
        raise ValueError(f"A network for {target} must compute in float32")
    shape = (None, None, None, 3) if size is None else (1, *size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, "uint8", name="images")], autograph=False)
    def serve(images):
        return {"logits": model(images, training=False)}

    try:
        content = convert(serve)
    except Exception as error:  # Converters raise whatever their stages raise.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The converter to {target} cannot do this network ({reason})") from None
    digests = [hashlib.sha256(content).hexdigest(), *_digests_beside(path, classes)]
    text = class_file.to_text(classes, model_sha256=digests)
    _write({path.with_suffix(_CLASSES): text.encode(), path: content})


def _digests_beside(path, classes):
    """Digests of the other files that the file of the classes belongs to.

    `model.tflite` and `model.onnx` share `model.classes.json`.

    Args:
        path: file that is about to be written.
        classes: `kseg.runs.Classes`; files of other classes are left out.

    Returns:
        list of str.
    """
    try:
        known, more = class_file.from_text(path.with_suffix(_CLASSES).read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if (known.names, known.palette) != (classes.names, classes.palette):
        return []
    others = [f for f in path.parent.iterdir() if f.stem == path.stem and f.name != path.name]
    found = [hashlib.sha256(f.read_bytes()).hexdigest() for f in others if f.is_file()]
    return [digest for digest in found if digest in more.get("model_sha256", [])]


def _write(contents):
    """Writes files of one folder: all, or none of them in part."""
    with contextlib.ExitStack() as stack:
        for file, content in contents.items():
            stack.enter_context(files.replace_file(file)).write_bytes(content)
