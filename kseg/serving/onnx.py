"""Export of networks to ONNX, and loading into ONNX Runtime."""

import contextlib
import json
import logging
import os
import pathlib
import tempfile

from kseg.serving.checks import require
from kseg.serving.network_file import Runner, check_calibration, export_file, resize

_OPSET = 18
# Not batch norms, which ONNX Runtime quantizes badly where they are not folded into a convolution.
_QUANTIZED = (
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Gemm", "GlobalAveragePool"),
    *("LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Resize", "Sigmoid", "Split"),
)


def export_onnx(
    segmenter,
    path,
    classes,
    size=None,
    *,
    result="logits",
    quantize=None,
    calibration=(),
    value_range=None,
    overwrite=False,
):
    """Writes a network as ONNX, opset 18.

    The input `images` is uint8 `(batch, height, width, channels)`, RGB if there are three
    channels. The output is `logits`, float32 `(batch, height, width, num_classes)`; or `classes`,
    uint8, and `confidence`, the float32 probability of each, both `(batch, height, width)`. Axes of
    any length have these names. The names and colors of the classes are written beside it, as in
    `kseg.serving.litert.export_tflite`, and to the file's metadata: `names` and `palette` as JSON
    lists, `value_range` as a JSON list or null; of images that are not 8-bit RGB also `pixels`: a
    JSON object of channels, dtype, range and statistics, see `kseg.pixel_format.PixelFormat`.

    Args:
        segmenter, path, classes, result, value_range, overwrite: as for `export_tflite`.
        size: `(height, width)` of the images, with a batch size of 1; None: any image and batch
            size.
        quantize: None: float32. `"float16"`: weights and computation of 16 bits, for GPUs and
            accelerators; ONNX Runtime converts them to float32 on a CPU. `"int8"`: weights of 8
            bits with a scale for each output channel, activations of 8 bits with ranges from
            `calibration`, as pairs of QuantizeLinear and DequantizeLinear (QDQ). The layer that
            computes the logits, and what follows it, remain float32.
        calibration: uint8 arrays `(height, width, channels)`, images for `"int8"`.

    Raises:
        UserError: if tf2onnx, or what `quantize` needs, is not installed, or as in
            `kseg.serving.litert.export_tflite`.
        ValueError: as in `kseg.serving.litert.export_tflite`.
    """
    require("tf2onnx")
    if quantize is not None:
        require("onnxruntime")
    if quantize == "int8":
        check_calibration(calibration, segmenter)
    path = pathlib.Path(path)
    from kseg.segmenters import pixel_format_of  # Imported late: exported files run without Keras.

    pixels = pixel_format_of(segmenter)

    def convert(module):
        import onnx
        import tf2onnx

        # Otherwise the converter copies the graph in each pass, which takes half of its time.
        os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "FALSE")
        # Converted for any size, then fixed: for resizing between known sizes, the converter
        # writes a rounded factor, whose result is sometimes a pixel too small.
        model, _ = tf2onnx.convert.from_function(
            module.serve, input_signature=module.serve.input_signature, opset=_OPSET
        )
        _pad_explicitly(model.graph)
        _omit_unused_inputs(model.graph)
        _name_axes(model.graph, size)
        if quantize == "float16":
            model = _to_float16(model)
        if quantize == "int8":
            model = _to_int8(model, [resize(i, size) if size else i for i in calibration])
        metadata = {
            "names": json.dumps(classes.names),
            "palette": json.dumps(classes.palette),
            "value_range": json.dumps(value_range),
        }
        if pixels is not None:
            metadata["pixels"] = json.dumps(pixels.to_dict())
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)  # The converter does not report operations unknown to it.
        return {path: model.SerializeToString()}

    export_file(
        segmenter,
        path,
        classes,
        None,
        convert,
        target="ONNX",
        result=result,
        value_range=value_range,
        overwrite=overwrite,
    )


def open_onnx(path, threads):
    """Opens a file in ONNX Runtime on the CPU.

    Returns:
        `kseg.serving.network_file.Runner`.

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
    names = tuple(output.name for output in session.get_outputs())

    def run(images):
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return Runner(size, names, run)


def _name_axes(graph, size):
    """Names the axes of inputs and outputs, or sets the lengths of those that are fixed."""
    lengths = (
        {} if size is None else dict(zip(("batch", "height", "width"), (1, *size), strict=True))
    )
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, ("batch", "height", "width"), strict=False):
            if name in lengths:
                axis.dim_value = lengths[name]
            else:
                axis.dim_param = name


def _omit_unused_inputs(graph):
    """Omits region and scales of resizings to a size, which are empty constants otherwise.

    The conversion to float16 would cast them, and a cast one no longer counts as empty.
    """
    omitted = set()
    for node in graph.node:
        if node.op_type == "Resize" and len(node.input) == 4:
            omitted |= {node.input[1], node.input[2]}
            node.input[1] = node.input[2] = ""
    unused = omitted - {name for node in graph.node for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name in unused]:
        graph.initializer.remove(constant)  # ONNX Runtime warns of what no node uses.


def _to_float16(model):
    """Converts weights and computation to float16; the outputs keep their types."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = float16.convert_float_to_float16(model, keep_io_types=True)
    # It appends the casts of constants to the end.
    OnnxModel.graph_topological_sort(model.graph)
    return model


def _to_int8(model, images):
    """Quantizes a network with the ranges of activations found on images.

    Args:
        model: onnx model with float32 weights.
        images: list of uint8 arrays `(height, width, channels)`.

    Returns:
        onnx model.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter(images)

    class Images(quantization.CalibrationDataReader):
        def get_next(self):
            image = next(batches, None)
            return None if image is None else {"images": image[None]}

    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        source, prepared, target = (f"{folder}/{name}.onnx" for name in ("a", "b", "c"))
        onnx.save(model, source)
        # Folds constants and batch norms. The symbolic shapes would need SymPy, and only serve
        # networks for text.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        prepared_model = onnx.load(prepared)
        quantization.quantize_static(
            prepared_model,
            target,
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=_last_nodes(prepared_model.graph),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(target)


def _last_nodes(graph):
    """Names the nodes from the last convolution to the outputs."""
    sources = {output: node for node in graph.node for output in node.output}
    waiting, found = [sources[value.name] for value in graph.output], {}
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found[node.name] = node
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            waiting += [sources[name] for name in node.input if name in sources]
    return list(found)


@contextlib.contextmanager
def _without_warnings():
    """Silences the quantizer, which logs advice about its own preparation to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


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
