"""Loading of exported networks in any of the formats of `kseg export`."""

import pathlib


def load(path):
    """Loads an exported network.

    Args:
        path: folder of a SavedModel, or a file for LiteRT, ONNX or OpenVINO.

    Returns:
        `kseg.serving.ServedModel`, a compiled Keras model, for a folder;
        `kseg.serving.network_file.PortableModel` for a file. Both map uint8 images `(batch,
        height, width, 3)` to float32 logits `(batch, height, width, num_classes)`, and hold the
        names and colors of the classes as `classes`.

    Raises:
        UserError: if there is no such network, it is damaged, or its runtime is not installed.
    """
    if pathlib.Path(path).is_file():
        from kseg.serving import portable

        return portable.load(path)
    from kseg.serving.saved_model import load_saved_model

    return load_saved_model(path)
