"""Export of networks to LiteRT (formerly TensorFlow Lite), and loading into its interpreter."""

from kseg.serving.checks import require
from kseg.serving.network_file import export_file


def export_tflite(segmenter, path, classes, size, *, value_range=None, overwrite=False):
    """Writes a float32 network for LiteRT, formerly TensorFlow Lite.

    The input `images` is uint8 RGB `(1, height, width, 3)`, the output `logits` float32 `(1,
    height, width, num_classes)`. The names and colors of the classes are written to a JSON file
    beside it, with `.classes.json` in place of its suffix. Only operations built into LiteRT are
    used, so that an interpreter without TensorFlow can run the network.

    Args:
        segmenter: float32 model from `kseg.segmenters.build_segmenter`.
        path: file to write, atomically.
        classes: `kseg.classes.Classes`.
        size: `(height, width)` of the images.
        value_range: as for `kseg.serving.export_saved_model`; stored in the JSON file.
        overwrite: bool, whether to replace an existing file.

    Raises:
        UserError: if the file exists or cannot be written, or the converter cannot handle this
            network.
        ValueError: if the segmenter computes in another precision, or differs from `classes` in the
            number of classes.
    """

    def convert(function):
        import tensorflow as tf  # Imported late: the files run without it.

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
