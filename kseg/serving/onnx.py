"""Export of networks to ONNX, and loading into ONNX Runtime."""

import os

from kseg.serving.checks import require
from kseg.serving.network_file import export_file

_OPSET = 18


def export_onnx(segmenter, path, classes, size=None, *, value_range=None, overwrite=False):
    """Writes a float32 network as ONNX, opset 18.

    The input `images` is uint8 RGB `(batch, height, width, 3)`, the output `logits` float32
    `(batch, height, width, num_classes)`. The names and colors of the classes are written beside
    it, as in `kseg.serving.litert.export_tflite`.

    Args:
        segmenter, path, classes, value_range, overwrite: as for `export_tflite`.
        size: `(height, width)` of the images, with a batch size of 1; None: any image and batch
            size.

    Raises:
        UserError: if tf2onnx is not installed, or as in `kseg.serving.litert.export_tflite`.
        ValueError: as in `kseg.serving.litert.export_tflite`.
    """
    require("tf2onnx")

    def convert(function):
        import onnx
        import tf2onnx

        # Otherwise the converter copies the graph in each pass, which takes half of its time.
        os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "FALSE")
        # Converted for any size, then fixed: for resizing between known sizes, the converter
        # writes a rounded factor, whose result is sometimes a pixel too small.
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=_OPSET
        )
        _pad_explicitly(model.graph)
        if size is not None:
            shape = model.graph.input[0].type.tensor_type.shape
            for axis, length in zip(shape.dim, (1, *size, 3), strict=True):
                axis.dim_value = length
        onnx.checker.check_model(model)  # The converter does not report operations unknown to it.
        return model.SerializeToString()

    export_file(segmenter, path, classes, None, value_range, overwrite, "ONNX", convert)


def open_onnx(path, threads):
    """Opens a file in ONNX Runtime on the CPU.

    Returns:
        `(size, run)`: `(height, width)` of the images, or None for any size; and a function from
        uint8 images to float32 logits.

    Raises:
        UserError: if the runtime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    size = tuple(session.get_inputs()[0].shape[1:3])
    size = size if all(isinstance(length, int) for length in size) else None
    return size, lambda images: session.run(["logits"], {"images": images})[0]


def _pad_explicitly(graph):
    """Makes the automatic padding of dilated convolutions explicit, for runtimes that reject it.

    Only convolutions of stride 1 are changed: their padding does not depend on the image size.
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
