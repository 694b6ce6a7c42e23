"""Export of networks to LiteRT (formerly TensorFlow Lite), and loading into its interpreter."""

import pathlib
import tempfile
import warnings

from kseg.serving.checks import require
from kseg.serving.network_file import Runner, check_calibration, export_file, resize

_SIGNATURE = "serving_default"


def export_tflite(
    segmenter,
    path,
    classes,
    size,
    *,
    result="logits",
    quantize=None,
    calibration=(),
    value_range=None,
    overwrite=False,
):
    """Writes a network for LiteRT, formerly TensorFlow Lite.

    The file has one signature, `serving_default`. Its input `images` is uint8 `(1, height, width,
    channels)`, RGB if there are three channels. Its output is `logits`, float32 `(1, height,
    width, num_classes)`; or `classes`, uint8, and `confidence`, the float32 probability of each,
    both `(1, height, width)`. The names and colors of the classes are written to a JSON file
    beside it, with `.classes.json` in place of its suffix. Only operations built into LiteRT are
    used, so that an interpreter without TensorFlow can run the network.

    Args:
        segmenter: float32 model from `kseg.segmenters.build_segmenter`.
        path: file to write, atomically.
        classes: `kseg.classes.Classes`.
        size: `(height, width)` of the images.
        result: `"logits"` or `"classes"`, what the network returns.
        quantize: None: float32. `"float16"`: weights of 16 bits, computation in float32 on a CPU.
            `"int8"`: weights of 8 bits with a scale for each output channel, activations of 8 bits
            with ranges from `calibration`; operations without an 8-bit form remain float32.
        calibration: uint8 arrays `(height, width, channels)`, images for `"int8"`, resized to
            `size`.
        value_range: as for `kseg.serving.export_saved_model`; stored in the JSON file.
        overwrite: bool, whether to replace an existing file.

    Raises:
        UserError: if the file exists or cannot be written, the converter cannot handle this
            network, or the images of `calibration` have another number of channels.
        ValueError: if the segmenter computes in another precision, differs from `classes` in the
            number of classes, or `calibration` holds no image for `"int8"`.
    """
    if quantize == "int8":
        check_calibration(calibration, segmenter)
    path = pathlib.Path(path)

    def convert(module):
        import tensorflow as tf  # Imported late: the files run without it.

        with tempfile.TemporaryDirectory() as folder:
            signatures = {_SIGNATURE: module.serve.get_concrete_function()}
            tf.saved_model.save(module, folder, signatures=signatures)
            converter = tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=[_SIGNATURE]
            )
            if quantize is not None:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if quantize == "int8":
                converter.representative_dataset = lambda: (
                    {"images": resize(image, size)[None]} for image in calibration
                )
            with warnings.catch_warnings():
                # About ranges of the input, which is uint8 in any case, and about the interpreter
                # with which TensorFlow itself calibrates.
                warnings.simplefilter("ignore", UserWarning)
                return {path: converter.convert()}

    export_file(
        segmenter,
        path,
        classes,
        size,
        convert,
        target="LiteRT",
        result=result,
        value_range=value_range,
        overwrite=overwrite,
    )


def open_tflite(path, threads):
    """Opens a file in LiteRT's interpreter.

    Returns:
        `kseg.serving.network_file.Runner`.

    Raises:
        UserError: if the runtime is not installed.
    """
    require("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (images,) = interpreter.get_input_details()
    size = tuple(map(int, images["shape"][1:3]))
    if interpreter.get_signature_list():
        # The runner itself would accept, and resize the network to, images of another size.
        details = interpreter.get_signature_runner(_SIGNATURE).get_output_details()
        outputs = {name: detail["index"] for name, detail in details.items()}
    else:  # Files of earlier versions have no signature.
        (logits,) = interpreter.get_output_details()
        outputs = {"logits": logits["index"]}

    def run(values):
        interpreter.set_tensor(images["index"], values)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in outputs.items()}

    return Runner(size, tuple(outputs), run)
