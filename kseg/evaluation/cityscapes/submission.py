"""Predictions as label images, named and packed for the Cityscapes evaluation server."""

import pathlib
import re
import zipfile

import cv2
import numpy as np

from kseg import files
from kseg.errors import UserError

_FRAME = re.compile(r"[A-Za-z-]+_\d{6}_\d{6}")


def frame_of(name):
    """Finds `<city>_<sequence>_<frame>` in the name of an image or a file.

    Raises:
        UserError: if it has no such part.
    """
    match = _FRAME.search(pathlib.PurePath(name).name)
    if match is None:
        raise UserError(
            "Images of Cityscapes must be called <city>_<sequence>_<frame>, such as "
            f"frankfurt_000000_000294. Received: {name!r}"
        )
    return match[0]


class LabelImages:
    """Writes each prediction as a PNG of one channel, `<city>_<sequence>_<frame>_labelIds.png`.

    The server and the official evaluation script look for files that begin with the name of the
    frame, and expect regular ids in them (7 for road), not training labels (0).

    Args:
        folder: `pathlib.Path`; made.
        values: list of int, 0 to 255, the value of each class in the files.

    Attributes:
        files: dict from frame to `pathlib.Path`.
    """

    def __init__(self, folder, values):
        self.files = {}
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._values = np.array(values, "uint8")

    def __call__(self, ids, labels, predictions):
        """Writes a batch.

        Args:
            ids: list of str, names of the images.
            labels: not looked at.
            predictions: int array `(batch, height, width)` of classes.

        Raises:
            UserError: if a name is not that of a frame, or comes twice.
        """
        for name, predicted in zip(ids, predictions, strict=True):
            frame = frame_of(name)
            if frame in self.files:
                raise UserError(f"Each frame must come once. Received {frame!r} again, as {name!r}")
            file = self._folder / f"{frame}_labelIds.png"
            file.write_bytes(cv2.imencode(".png", self._values[predicted])[1].tobytes())
            self.files[frame] = file


def write_zip(pictures, path):
    """Packs files without their folders; the archive appears only when it is complete.

    Args:
        pictures: `pathlib.Path`s.
        path: file to write, `.zip`; its folder is made.
    """
    # PNGs are compressed already.
    with files.replace_file(path) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as archive:
        for picture in pictures:
            archive.write(picture, picture.name)
