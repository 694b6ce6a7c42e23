import numpy as np
import pytest
import tensorflow as tf

from pipelines.datasets import synthetic
from pipelines.errors import DataError

SIZE = (72, 128)


@pytest.fixture(scope="module")
def scenes():
    return [synthetic.render(0, "train", index, SIZE) for index in range(40)]


def test_shapes_and_labels(scenes):
    for image, labels in scenes:
        assert (image.dtype, image.shape) == (np.uint8, (*SIZE, 3))
        assert (labels.dtype, labels.shape) == (np.uint8, SIZE)
        assert set(np.unique(labels)) <= {*range(8), 255}


def test_classes_are_as_rare_as_in_a_street(scenes):
    counts = np.bincount(np.concatenate([labels.ravel() for _, labels in scenes]), minlength=256)
    shares = counts / counts.sum()
    assert (shares[:8] > 0.0005).all()
    assert shares[synthetic.SIGN] < 0.01 and shares[synthetic.PERSON] < 0.03
    assert shares[synthetic.ROAD] > 0.15
    assert 0 < shares[255] < 0.05
    with_sign = np.mean([(labels == synthetic.SIGN).any() for _, labels in scenes])
    assert 0.2 < with_sign < 0.95


def test_sky_is_above_road(scenes):
    rows = np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    for _, labels in scenes:
        if (labels == synthetic.SKY).any():
            above = rows[labels == synthetic.SKY].mean()
            assert above < rows[labels == synthetic.ROAD].mean()


def test_pictures_tell_classes_apart(scenes):
    """Sky and road differ in colour within each picture, by more than the road's own spread."""
    clear = 0
    for image, labels in scenes:
        sky, road = (image[labels == c].astype(float) for c in (synthetic.SKY, synthetic.ROAD))
        if len(sky) > 50:
            clear += np.abs(sky.mean(axis=0) - road.mean(axis=0)).max() > road.std()
    assert clear > 30


def test_a_scene_depends_on_nothing_but_its_numbers(scenes):
    for index in (7, 3):
        image, labels = synthetic.render(0, "train", index, SIZE)
        np.testing.assert_array_equal(image, scenes[index][0])
        np.testing.assert_array_equal(labels, scenes[index][1])
    for other in ((1, "train", 3), (0, "val", 3), (0, "train", 4)):
        assert not np.array_equal(synthetic.render(*other, SIZE)[0], scenes[3][0])


@pytest.mark.parametrize("size", [(32, 32), (65, 33), (40, 200)])
def test_any_size(size):
    for index in range(3):
        image, labels = synthetic.render(0, "val", index, size)
        assert image.shape == (*size, 3) and labels.shape == size


def test_examples():
    splits = synthetic.find(seed=3, train_images=5, val_images=2, size=SIZE).splits
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 5, "val": 2}
    example = splits["val"][1]
    assert example.id == "val_00001"
    image, labels = synthetic.render(3, "val", 1, SIZE)
    jpeg, png = example.read()
    np.testing.assert_array_equal(tf.io.decode_png(png)[..., 0], labels)
    difference = tf.io.decode_jpeg(jpeg).numpy().astype(int) - image
    assert np.abs(difference).mean() < 8
    prints = {str(e.fingerprint) for examples in splits.values() for e in examples}
    assert len(prints) == 7


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source": "folder"}, "has no source folder"),
        ({"seed": -1}, "`seed` must be 0 or more"),
        ({"val_images": 0}, "Both splits need at least one image"),
        ({"size": (16, 64)}, "`size` must be 32 or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        synthetic.find(**options)
