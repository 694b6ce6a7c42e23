"""How a training went, from the events it wrote for TensorBoard."""

import pathlib

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


def read_scalars(folder):
    """Reads the scalars of one of TensorBoard's runs; pictures are passed over, one at a time.

    A training that was stopped goes on from a checkpoint and writes a further file: where it
    repeats a step, the later file counts. The end of a file that is still being written may be
    missing.

    Args:
        folder: folder of event files; it may be missing.

    Returns:
        dict from a tag to `(steps, values)`, lists of int ascending and of float.
    """
    found = {}
    for file in sorted(pathlib.Path(folder).glob("*tfevents*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = tensor_util.make_ndarray(value.tensor).item()
                    found.setdefault(value.tag, {})[event.step] = float(number)
    return {tag: tuple(map(list, zip(*sorted(v.items()), strict=True))) for tag, v in found.items()}
