import zipfile

import cv2
import numpy as np
import pytest

from kseg.errors import UserError
from kseg.evaluation.cityscapes.submission import LabelImages, frame_of, write_zip


@pytest.mark.parametrize(
    "name",
    [
        "bad-honnef_000000_000294",
        "bad-honnef_000000_000294_leftImg8bit",
        "test/bad-honnef/bad-honnef_000000_000294_gtFine_labelIds.png",
    ],
)
def test_frame_of(name):
    assert frame_of(name) == "bad-honnef_000000_000294"


@pytest.mark.parametrize("name", ["0016E5_07959", "ulm_00000_000294", "ulm_000000_000294/a.png"])
def test_frame_of_another_name(name):
    with pytest.raises(UserError, match="must be called <city>_<sequence>_<frame>"):
        frame_of(name)


def test_label_images_in_a_zip(tmp_path):
    predictions = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype("uint8")
    names = [f"ulm_000000_{number:06d}" for number in range(3)]
    images = LabelImages(tmp_path / "labels", [7, 26, 8])
    images(names[:2], None, predictions[:2])
    images(names[2:], None, predictions[2:])
    write_zip(images.files.values(), tmp_path / "new" / "all.zip")
    with zipfile.ZipFile(tmp_path / "new" / "all.zip") as archive:
        assert archive.namelist() == [f"{name}_labelIds.png" for name in names]
        for name, predicted in zip(archive.namelist(), predictions, strict=True):
            png = cv2.imdecode(np.frombuffer(archive.read(name), "uint8"), cv2.IMREAD_UNCHANGED)
            assert (png.dtype, png.shape) == ("uint8", (4, 5))
            np.testing.assert_array_equal(png, np.array([7, 26, 8])[predicted])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["all.zip"]


def test_refuses_a_frame_that_comes_twice(tmp_path):
    images = LabelImages(tmp_path, [0])
    predictions = np.zeros((1, 2, 2), "uint8")
    images(["ulm_000000_000000"], None, predictions)
    with pytest.raises(UserError, match="must come once"):
        images(["ulm_000000_000000_leftImg8bit"], None, predictions)
