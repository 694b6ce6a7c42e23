import numpy as np
import tensorflow as tf

from pipelines import mixing

COUNT, HEIGHT, WIDTH = 6, 20, 30


def example():
    """Each pixel's color tells its image, row and column; some labels are ignored."""
    number, row, column = np.indices((COUNT, HEIGHT, WIDTH))
    label = (7 * number + row // 4 + column // 5) % 5
    label[:, 3:6, 10:14] = 255
    image = np.stack([number, row, column], axis=-1)
    return {"image": image.astype("uint8"), "label": label.astype("uint8")}


def mixed(function, number, **arguments):
    batch = example()
    tensors = {k: tf.constant(v) for k, v in batch.items()}
    found = function(tensors, tf.constant([3, number]), **arguments)
    found = {key: value.numpy() for key, value in found.items()}
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (v.dtype, v.shape) for k, v in batch.items()
    }
    image, row, column = np.moveaxis(found["image"], -1, 0)
    # Pixels stay at their place, and labels are those of the pixels.
    assert (row == batch["image"][..., 1]).all() and (column == batch["image"][..., 2]).all()
    np.testing.assert_array_equal(found["label"], batch["label"][image, row, column])
    return image, found["label"]


def test_cut_mix_replaces_a_rectangle_by_that_of_one_other_image():
    shares, partners = [], np.zeros((COUNT, COUNT))
    for number in range(40):
        image, _ = mixed(mixing.cut_mix, number, probability=1.0)
        taken_from = []
        for own, pixels in enumerate(image):
            other = pixels != own
            shares.append(other.mean())
            if not other.any():
                continue
            rows, columns = np.flatnonzero(other.any(1)), np.flatnonzero(other.any(0))
            assert other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert abs(len(rows) / HEIGHT - len(columns) / WIDTH) <= 0.5 / HEIGHT + 0.5 / WIDTH
            assert len(np.unique(pixels[other])) == 1
            taken_from.append(pixels[other][0])
            partners[own, taken_from[-1]] += 1
        assert len(set(taken_from)) == len(taken_from)
    # Uniform: mean 1/2, variance 1/12; the mean of 240 is within 5 standard deviations.
    assert abs(np.mean(shares) - 0.5) < 5 / np.sqrt(12 * len(shares))
    assert (partners[~np.eye(COUNT, dtype=bool)] > 0).all()


def test_the_share_of_images_and_the_form_of_the_distribution():
    changed = [
        (mixed(mixing.cut_mix, n, probability=0.25)[0] != np.arange(COUNT)[:, None, None]).any(
            (1, 2)
        )
        for n in range(40)
    ]
    assert abs(np.mean(changed) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 240)
    shares = [
        (
            mixed(mixing.cut_mix, n, probability=1.0, alpha=200.0)[0]
            != np.arange(COUNT)[:, None, None]
        ).mean((1, 2))
        for n in range(5)
    ]
    assert np.abs(np.array(shares) - 0.5).max() < 0.15


def test_copy_paste_pastes_all_pixels_of_the_classes_and_no_others():
    before = example()["label"]
    for number in range(20):
        image, label = mixed(mixing.copy_paste, number, classes=[1, 4], probability=1.0)
        for own, pixels in enumerate(image):
            others = np.unique(pixels[pixels != own])
            assert len(others) == 1
            pasted = np.isin(before[others[0]], [1, 4])
            np.testing.assert_array_equal(pixels != own, pasted)
            kept = (before[own] == 255) & ~pasted
            assert (label[own][kept] == 255).all()
    image, _ = mixed(mixing.copy_paste, 0, classes=[1], probability=0.0)
    assert (image == np.arange(COUNT)[:, None, None]).all()


def test_same_seed_same_batch():
    for function, arguments in ((mixing.cut_mix, {}), (mixing.copy_paste, {"classes": [1]})):
        one, again, other = (mixed(function, n, **arguments)[0] for n in (5, 5, 6))
        assert (one == again).all() and (one != other).any()
