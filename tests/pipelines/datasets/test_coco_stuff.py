import io

import numpy as np
import pytest
import scipy.io

from pipelines.datasets import coco_stuff
from pipelines.errors import DataError
from tests.pipelines.tiny_data import all_labels, encode, pack, write_pairs

NAMES = [f"COCO_train2014_{number:012d}" for number in (77, 113, 349)]
# unlabeled, person, stop sign, bench (the number between them is unused), banner, wood.
VALUES = np.uint8([[0, 1, 13, 15, 92, 182]])
LABELS = [[255, 0, 11, 13, 80, 170]]


def mat(values, dtype="uint8", name="S"):
    file = io.BytesIO()
    names = np.array(["person", "bicycle"], object)
    scipy.io.savemat(file, {name: values.astype(dtype), "names": names, "captions": names})
    return file.getvalue()


def write_download(folder, label=mat, suffix=".mat"):
    pairs = {(f"images/{name}.jpg", f"annotations/{name}{suffix}"): label(VALUES) for name in NAMES}
    write_pairs(folder, pairs, VALUES.shape)
    (folder / "imageLists").mkdir()
    for split, names in (("train", NAMES[:2]), ("test", NAMES[2:]), ("all", NAMES)):
        (folder / "imageLists" / f"{split}.txt").write_text("\n".join(names) + "\n")


def check(found):
    labels = all_labels(found)
    assert {split: list(ids) for split, ids in labels.items()} == {
        "train": NAMES[:2],
        "test": NAMES[2:],
    }
    for arrays in labels.values():
        for array in arrays.values():
            np.testing.assert_array_equal(array, LABELS)


@pytest.mark.parametrize("kind", ["", "zip", "tar"])
def test_official(tmp_path, kind):
    write_download(tmp_path / "set")
    source = tmp_path / "set"
    if kind:
        pack(tmp_path / f"cocostuff-10k-v1.1.{kind}", source)
        source = tmp_path / f"cocostuff-10k-v1.1.{kind}"
    check(coco_stuff.find(source))


@pytest.mark.parametrize("dtype", ["uint16", "float64"])
def test_any_whole_numbers(tmp_path, dtype):
    write_download(tmp_path, lambda values: mat(values, dtype))
    check(coco_stuff.find(tmp_path))


def test_converted(tmp_path):
    pairs = {
        (f"{split}/image/{name}.jpg", f"{split}/label/{name}.png"): VALUES
        for split, names in (("train", NAMES[:2]), ("val", NAMES[2:]))
        for name in names
    }
    write_pairs(tmp_path, pairs)
    check(coco_stuff.find(tmp_path))


@pytest.mark.parametrize(
    "encoding, values",
    [
        ("stuffthingmaps", [[255, 0, 12, 14, 91, 181]]),  # One less; 255 is unlabeled.
        ("release_1_0", [[1, 2, 13, 15, 82, 172]]),  # Without the 11 unused numbers.
    ],
)
def test_encodings(tmp_path, encoding, values):
    write_download(tmp_path, lambda _: encode(np.uint8(values)), ".png")
    check(coco_stuff.find(tmp_path, encoding))


def test_the_wrong_encoding(tmp_path):
    write_download(tmp_path, lambda _: encode(np.uint8([[255, 0, 12, 14, 91, 181]])), ".png")
    with pytest.raises(DataError, match=r"among 0\.\.182; found 255 \(1 pixels\)"):
        all_labels(coco_stuff.find(tmp_path))
    with pytest.raises(DataError, match=r"of the encoding release_1_0; found 0 \(1 pixels\)"):
        all_labels(coco_stuff.find(tmp_path, "release_1_0"))
    with pytest.raises(DataError, match=r"`encoding` must be one of release_1_1, .* 'S'"):
        coco_stuff.find(tmp_path, "S")


@pytest.mark.parametrize(
    "label, message",
    [
        (mat(VALUES, name="T"), "the MATLAB file must hold the variable 'S'"),
        (mat(VALUES + 0.5, "float64"), r"S must be a map of whole numbers, this is float64"),
        (mat(-1.0 * VALUES, "float64"), "S must be a map of whole numbers"),
        (b"nonsense", "the MATLAB file cannot be read"),
        (b"", "the MATLAB file cannot be read"),
    ],
)
def test_bad_matlab_files(tmp_path, label, message):
    write_download(tmp_path, lambda _: label)
    with pytest.raises(DataError, match=f"{NAMES[0]}.mat: {message}"):
        all_labels(coco_stuff.find(tmp_path))


def test_mistakes(tmp_path):
    with pytest.raises(DataError, match=r"with images/, annotations/ and imageLists/ .* nothing$"):
        coco_stuff.find(tmp_path)
    write_download(tmp_path)
    (tmp_path / "annotations" / f"{NAMES[1]}.mat").unlink()
    with pytest.raises(DataError, match=rf"train.txt names what has no label file: {NAMES[1]}"):
        coco_stuff.find(tmp_path)
    (tmp_path / "imageLists" / "train.txt").write_text(f"{NAMES[0]}\n{NAMES[0]}\n")
    with pytest.raises(DataError, match=f"Named twice: {NAMES[0]}"):
        coco_stuff.find(tmp_path)
    (tmp_path / "imageLists" / "train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt names no image"):
        coco_stuff.find(tmp_path)
    for name in ("train", "test"):
        (tmp_path / "imageLists" / f"{name}.txt").unlink()
    with pytest.raises(DataError, match=r"imageLists must hold train\.txt, test\.txt or both"):
        coco_stuff.find(tmp_path)
