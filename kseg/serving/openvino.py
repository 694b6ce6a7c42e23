"""Export of networks to OpenVINO, and loading into its runtime."""

import pathlib
import tempfile

from kseg.serving.checks import check_openvino_target, require
from kseg.serving.network_file import Runner, export_file

_OUTPUTS = ("logits", "classes", "confidence")


def export_openvino(
    segmenter,
    path,
    classes,
    size=None,
    *,
    result="logits",
    quantize=None,
    value_range=None,
    overwrite=False,
):
    """Writes a network for OpenVINO: an `.xml` file, and its weights as a `.bin` file beside it.

    Inputs and outputs are those of `kseg.serving.onnx.export_onnx`.

    Args:
        segmenter, path, classes, size, result, value_range, overwrite: as for `export_onnx`; the
            path must end in `.xml`.
        quantize: None: float32. `"float16"`: weights of 16 bits.

    Raises:
        UserError: if OpenVINO is not installed, the path has another suffix, or as in
            `kseg.serving.litert.export_tflite`.
        ValueError: as in `kseg.serving.litert.export_tflite`.
    """
    require("openvino")
    path = pathlib.Path(path)
    check_openvino_target(path, overwrite)

    def convert(module):
        import openvino
        import tensorflow as tf  # Imported late: the files run without it.

        with tempfile.TemporaryDirectory() as folder:
            signatures = {"serving_default": module.serve.get_concrete_function()}
            tf.saved_model.save(module, folder, signatures=signatures)
            model = openvino.convert_model(folder)
            file = pathlib.Path(folder) / "model.xml"
            openvino.save_model(model, file, compress_to_fp16=quantize == "float16")
            return {path.with_suffix(s): file.with_suffix(s).read_bytes() for s in (".bin", ".xml")}

    export_file(
        segmenter,
        path,
        classes,
        size,
        convert,
        target="OpenVINO",
        result=result,
        value_range=value_range,
        overwrite=overwrite,
    )


def open_openvino(path, threads):
    """Opens a file in OpenVINO on the CPU, with computation in float32.

    Returns:
        `kseg.serving.network_file.Runner`.

    Raises:
        UserError: if the runtime is not installed.
    """
    require("openvino")
    import openvino

    # On a CPU with instructions for bfloat16, OpenVINO would compute in it.
    properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", properties)
    shape = model.input(0).get_partial_shape()
    size = None if shape[1].is_dynamic else tuple(shape[i].get_length() for i in (1, 2))
    names = [name for output in model.outputs for name in output.get_names() if name in _OUTPUTS]
    request = model.create_infer_request()

    def run(images):
        found = request.infer({0: images})
        return {name: found[name] for name in names}

    return Runner(size, tuple(names), run)
