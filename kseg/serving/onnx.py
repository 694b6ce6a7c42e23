"""Export of networks to ONNX, and loading in ONNX Runtime."""

import os

from kseg.serving.checks import require
from kseg.serving.network_file import export_file

_OPSET = 18


def export_onnx(segmenter, path, classes, size=None, *, value_range=None, overwrite=False):
    """Writes a float32 network as ONNX, opset 18.

    Its input `images` is uint8 RGB `(batch, height, width, 3)`, its output `logits` float32
    `(batch, height, width, num_classes)`; names and colors are beside it as for
    `kseg.serving.litert.export_tflite`.

    Args:
        segmenter, path, classes, value_range, overwrite: as for `export_tflite`.
        size: `(height, width)` of the images, with a batch of one; or None: any size and batch.

    Raises:
        UserError: if tf2onnx is not installed; else as for `kseg.serving.litert.export_tflite`.
        ValueError: as for `kseg.serving.litert.export_tflite`.
    """
    require("tf2onnx")

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

    export_file(segmenter, path, classes, None, value_range, overwrite, "ONNX", convert)


def open_onnx(path, threads):
    """Opens a file in ONNX Runtime, on the CPU.

    Returns:
        `(size, run)`: `(height, width)` of the images or None: any; and a function from uint8
        images to float32 logits.

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
