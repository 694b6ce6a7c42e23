"""Files in the layout of Cityscapes, of a few pixels."""

import cv2
import numpy as np

NAMES = ["road", "sky", "car"]
REGULAR_IDS = [7, 23, 26]
LABEL_MAP = {**dict.fromkeys(range(34), 255), 7: 0, 23: 1, 26: 2}


def write_annotation(folder, frame, labels, instances=None):
    """Writes the label and the instance image of a frame.

    Args:
        folder: `pathlib.Path`, the root of gtFine.
        frame: such as `lindau_000001_000019`.
        labels: int array `(height, width)`, of `NAMES`; 255 becomes "static".
        instances: int array of the same shape: 0 where there is none, else its number from 1.
    """
    city = folder / "val" / frame.split("_")[0]
    city.mkdir(parents=True, exist_ok=True)
    values = np.append(REGULAR_IDS, [4] * 253).astype("uint16")[labels]
    cv2.imwrite(str(city / f"{frame}_gtFine_labelIds.png"), values.astype("uint8"))
    if instances is not None:
        values = np.where(instances > 0, values * 1000 + instances, values)
        cv2.imwrite(str(city / f"{frame}_gtFine_instanceIds.png"), values.astype("uint16"))
