"""Export of networks to LiteRT (formerly TensorFlow Lite), and loading in its interpreter."""

import tensorflow as tf

from kseg.serving.checks import require
from kseg.serving.network_file import export_file


def export_tflite(segmenter, path, classes, size, *, value_range=None, overwrite=False):
    """Writes a float32 network for LiteRT, formerly TensorFlow Lite.

    Its input `images` is uint8 RGB `(1, height, width, 3)`, its output `logits` float32 `(1,
    height, width, num_classes)`. The names and colors of the classes go to a JSON file beside it,
    of the same name with `.classes.json` in place of the ending. Only operations built into LiteRT
    are used, so that an interpreter without TensorFlow runs it.

    Args:
        segmenter: float32 model from `kseg.segmenters.build_segmenter`.
        path: file to write. It is complete or not there at all.
        classes: `kseg.classes.Classes`.
        size: `(height, width)` of the images.
        value_range: as for `kseg.serving.export_saved_model`; it goes to the JSON file.
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

    export_file(segmenter, path, classes, size, value_range, overwrite, "LiteRT", convert)


def open_tflite(path, threads):
    """Opens a file in LiteRT's interpreter.

    Returns:
        `(size, run)`: `(height, width)` of the images, and a function from uint8 images to float32
        logits.

    Raises:
        UserError: if the runtime is not installed.
    """
    require("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    (images,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(values):
        interpreter.set_tensor(images["index"], values)
        interpreter.invoke()
        return interpreter.get_tensor(logits["index"])

    return tuple(map(int, images["shape"][1:3])), run
