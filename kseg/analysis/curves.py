"""Training curves, read from TensorBoard's event files."""

import pathlib

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


def read_scalars(folder):
    """Reads the scalars of a TensorBoard run; images are skipped without keeping them in memory.

    A resumed training writes a further file; if it repeats a step, the later file takes precedence.
    The end of a file that is still being written may be missing.

    Args:
        folder: folder of event files; it need not exist.

    Returns:
        dict from a tag to `(steps, values)`, lists of ascending ints and of floats.
    """
    scalars = {}
    for file in sorted(pathlib.Path(folder).glob("*tfevents*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = tensor_util.make_ndarray(value.tensor).item()
                    scalars.setdefault(value.tag, {})[event.step] = float(number)
    return {
        tag: tuple(map(list, zip(*sorted(values.items()), strict=True)))
        for tag, values in scalars.items()
    }
