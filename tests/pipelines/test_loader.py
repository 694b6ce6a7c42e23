import pathlib

import cv2
import numpy as np
import pytest
import tensorflow as tf

from pipelines import augment, loader, records
from pipelines.errors import DataError
from tests.pipelines.tiny_data import ArrayExample, noise_example, smooth_example, write

SIZES = [(40, 52), (33, 47), (64, 48), (30, 90), (41, 41), (52, 40), (37, 60)]
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images of many sizes, half of them JPEG, in three shards."""
    folder = tmp_path_factory.mktemp("data")
    examples = [smooth_example(i, size, (".jpg", ".png")[i % 2]) for i, size in enumerate(SIZES)]
    write(folder, examples, num_shards=3)
    return folder


def training(folder, **arguments):
    arguments = {"batch_size": 2, "crop_size": (32, 40), "seed": 5, **arguments}
    return loader.training_dataset(folder, "train", **arguments)


def take(dataset, count):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset.take(count)]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_shapes_are_static(folder):
    assert training(folder, batch_size=3).element_spec == {
        "image": tf.TensorSpec((3, 32, 40, 3), "uint8"),
        "label": tf.TensorSpec((3, 32, 40), "uint8"),
    }


def test_same_arguments_same_stream(folder):
    once = take(training(folder, color_jitter=JITTER, num_parallel_calls=1), 9)
    again = take(training(folder, color_jitter=JITTER, num_parallel_calls=7), 9)
    assert_same(again, once)
    other = take(training(folder, color_jitter=JITTER, seed=6), 9)
    assert not all(np.array_equal(a["image"], b["image"]) for a, b in zip(once, other, strict=True))


def test_workers_divide_each_global_batch(folder):
    whole = take(training(folder, batch_size=8, start_step=3), 2)
    for num_replicas in (2, 4):
        parts = [
            take(
                training(
                    folder,
                    batch_size=8,
                    start_step=3,
                    worker=worker,
                    num_workers=2,
                    num_replicas=num_replicas,
                ),
                num_replicas,
            )
            for worker in (0, 1)
        ]
        each = num_replicas // 2
        for step, batch in enumerate(whole):
            found = [part for worker in parts for part in worker[each * step : each * (step + 1)]]
            assert all(len(part["image"]) == 8 // num_replicas for part in found)
            for key in ("image", "label"):
                np.testing.assert_array_equal(np.concatenate([x[key] for x in found]), batch[key])


@pytest.mark.parametrize("numbers", [{"num_replicas": 3}, {"num_workers": 2}])
def test_batches_that_cannot_be_divided(folder, numbers):
    with pytest.raises(ValueError, match="must divide"):
        training(folder, batch_size=4, **numbers)


def test_batch_size_does_not_change_the_samples(folder):
    twos, sixes = take(training(folder), 3), take(training(folder, batch_size=6), 1)
    for key in ("image", "label"):
        np.testing.assert_array_equal(np.concatenate([b[key] for b in twos]), sixes[0][key])


@pytest.mark.parametrize("start", [1, 3, 8])  # 7 images, 2 in a batch: epochs end amid batches.
def test_a_stream_can_start_anywhere(folder, start):
    whole = take(training(folder, color_jitter=JITTER), 10)
    assert_same(
        take(training(folder, color_jitter=JITTER, start_step=start), 10 - start), whole[start:]
    )


def test_a_stream_can_start_after_millions_of_steps(folder):
    far = 10**8
    second = take(training(folder, start_step=far + 1), 1)
    assert_same(take(training(folder, start_step=far), 2)[1:], second)


def solid_examples(count):
    """Images of one colour each: their number."""
    empty = np.zeros((4, 4), "uint8")
    return [ArrayExample(str(i), np.full((4, 4, 3), i, "uint8"), empty) for i in range(count)]


def test_every_epoch_has_every_image_once_in_another_order(tmp_path):
    write(tmp_path, solid_examples(23), num_shards=4)
    dataset = training(tmp_path, batch_size=1, crop_size=(4, 4), scale_range=(1, 1))
    numbers = [int(batch["image"][0, 0, 0, 0]) for batch in take(dataset, 3 * 23)]
    epochs = [numbers[:23], numbers[23:46], numbers[46:]]
    for epoch in epochs:
        assert sorted(epoch) == list(range(23))
    assert len(set(map(tuple, [*epochs, range(23)]))) == 4


def permutations(seed, count, epochs):
    """The order of the images in each of some epochs, `(epochs, count)`."""
    seed = tf.constant(seed, "int64")
    numbers = tf.data.Dataset.range(epochs * count)
    order = numbers.map(lambda number: loader.shuffled_index(seed, number, count))
    return np.array(list(order.batch(count).as_numpy_iterator()))


def test_orders_do_not_come_back():
    """Seeds that are cut to 8 bits have 256 orders, and are the same for 5 and 5 + 256."""
    orders = permutations(5, 23, 400)
    assert len(set(map(tuple, orders))) == 400
    assert not np.array_equal(orders[0], permutations(5 + 256, 23, 1)[0])


def test_every_order_is_as_likely():
    """Counts of image i at place j in 1000 epochs, against a chi-squared distribution."""
    count, epochs = 7, 1000
    orders = permutations(1, count, epochs)
    counts = np.stack([np.bincount(column, minlength=count) for column in orders.T])
    expected = epochs / count
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = (count - 1) ** 2
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def corrupt(folder, index):
    """Changes a byte in the middle of a record of the only shard."""
    shard = records.read_manifest(folder).splits["train"].shards[0]
    path = pathlib.Path(folder) / shard.file
    content = bytearray(path.read_bytes())
    ends = [*shard.offsets[1:], shard.bytes]
    content[(shard.offsets[index] + ends[index]) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_late_start_reads_nothing_of_what_went_before(tmp_path):
    write(tmp_path, solid_examples(6), num_shards=1)
    arguments = {"batch_size": 1, "crop_size": (4, 4), "scale_range": (1, 1)}
    order = [int(b["image"][0, 0, 0, 0]) for b in take(training(tmp_path, **arguments), 6)]
    path = corrupt(tmp_path, order[2])
    rest = take(training(tmp_path, start_step=3, **arguments), 3)
    assert [int(b["image"][0, 0, 0, 0]) for b in rest] == order[3:]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"The shard {path} is corrupt"):
        take(training(tmp_path, **arguments), 6)


def test_a_damaged_length_is_noticed(tmp_path):
    write(tmp_path, solid_examples(2), num_shards=1)
    path = next(tmp_path.glob("*.tfrecord"))
    content = bytearray(path.read_bytes())
    content[3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"The shard {path} is corrupt"):
        take(loader.evaluation_dataset(tmp_path, "train"), 2)


def draws(count, seed, sizes):
    """What the stream draws for its first samples: image, window, mirrored or not."""
    for number in map(np.int64, range(count)):
        index = loader.shuffled_index(np.int64(seed), number, len(sizes))
        numbers = tf.random.stateless_uniform((8,), tf.constant([seed, number], "int64"))
        window = augment.draw_window(numbers, tf.constant(sizes[index]), (32, 40), (0.5, 2.0))
        yield int(index), *(part.numpy() for part in window), float(numbers[7]) < 0.5


def test_the_crop_is_what_decoding_everything_would_give(folder):
    examples = {int(b["id"][0]): b for b in take(loader.evaluation_dataset(folder, "train"), 7)}
    batches = take(training(folder, batch_size=1), 40)
    for batch, draw in zip(batches, draws(40, 5, SIZES), strict=True):
        index, first, extent, shape, mirrored = draw
        rows, columns = (slice(f, f + e) for f, e in zip(first, extent, strict=True))
        image = examples[index]["image"][0, rows, columns]
        labels = examples[index]["label"][0, rows, columns]
        image = tf.image.resize(image, shape, "bilinear").numpy()
        labels = tf.image.resize(labels[..., None], shape, "nearest").numpy()[..., 0]
        if mirrored:
            image, labels = image[:, ::-1], labels[:, ::-1]
        expected = np.full((32, 40), 255)
        expected[: shape[0], : shape[1]] = labels
        np.testing.assert_array_equal(batch["label"][0], expected)
        difference = np.abs(batch["image"][0, : shape[0], : shape[1]] - image)
        # At the sides of a window of a JPEG, the chroma has no neighbour to be smoothed with.
        edge = 0 if index % 2 else 2 * int(np.ceil(shape[1] / extent[1]))
        inner = difference[:, edge : shape[1] - edge]
        assert inner.max(initial=0) <= 0.51
        assert difference.max() <= 30


def test_image_and_labels_move_together(tmp_path):
    """Where a label covers a neighbourhood, the image has the colour of that label."""
    rng = np.random.default_rng(0)
    examples = []
    for i, size in enumerate(SIZES):
        labels = cv2.resize(
            rng.integers(0, 3, (4, 4)).astype("uint8"), size[::-1], interpolation=cv2.INTER_NEAREST
        )
        image = np.uint8([[10, 20, 30], [90, 80, 70], [200, 220, 240]])[labels]
        examples.append(ArrayExample(str(i), image, labels))
    write(tmp_path, examples)
    checked = 0
    for batch in take(training(tmp_path, batch_size=1), 40):
        labels, image = batch["label"][0], batch["image"][0]
        same = cv2.erode(labels, np.ones((3, 3))) == cv2.dilate(labels, np.ones((3, 3)))
        same &= labels < 3
        same[[0, -1]] = same[:, [0, -1]] = False  # The neighbourhood goes on beyond the crop.
        expected = np.uint8([[10, 20, 30], [90, 80, 70], [200, 220, 240]])[labels[same]]
        np.testing.assert_array_equal(image[same], expected)
        checked += same.sum()
    assert checked > 40 * 32 * 40 / 4


def test_small_images_are_padded(tmp_path):
    example = noise_example(0, (10, 20))
    write(tmp_path, [example])
    arguments = {"crop_size": (12, 25), "scale_range": (1, 1), "flip": False, "batch_size": 1}
    (batch,) = take(training(tmp_path, color_jitter=None, **arguments), 1)
    np.testing.assert_array_equal(batch["image"][0, :10, :20], example.image)
    np.testing.assert_array_equal(batch["label"][0, :10, :20], example.labels)
    for padding in ((slice(10, None), slice(None)), (slice(None), slice(20, None))):
        assert (batch["label"][0][padding] == 255).all()
        assert (batch["image"][0][padding] == augment.PAD_COLOR).all()


def test_flip_mirrors_half(folder):
    plain, flipped = (
        take(training(folder, batch_size=1, scale_range=(1, 1), flip=flip), 60)
        for flip in (False, True)
    )
    mirrored = 0
    for one, other in zip(plain, flipped, strict=True):
        # Padding stays at the right: compare what is not padding.
        width = (one["label"][0, 0] < 255).sum()
        one, other = one["image"][0, :, :width], other["image"][0, :, :width]
        if np.array_equal(one, other):
            continue
        np.testing.assert_array_equal(other, one[:, ::-1])
        mirrored += 1
    assert 15 <= mirrored <= 45  # 30, within four standard deviations.


def test_jitter_changes_colors_only(folder):
    plain, jittered = (take(training(folder, color_jitter=j), 4) for j in (None, JITTER))
    for one, other in zip(plain, jittered, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
        assert not np.array_equal(one["image"], other["image"])


def test_replicas_split_the_global_batch(folder, mirrored):
    expected = take(training(folder, batch_size=4), 3)
    distributed = iter(mirrored.experimental_distribute_dataset(training(folder, batch_size=4)))
    for batch in expected:
        parts = next(distributed)
        for key, value in batch.items():
            found = mirrored.experimental_local_results(parts[key])
            assert [part.shape[0] for part in found] == [2, 2]
            np.testing.assert_array_equal(tf.concat(found, axis=0), value)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_evaluation_gives_whole_images_in_order(tmp_path, suffix):
    examples = [smooth_example(i, (20, 31), suffix) for i in range(7)]
    write(tmp_path, examples, split="val", num_shards=2)
    dataset = loader.evaluation_dataset(tmp_path, "val", batch_size=3)
    assert dataset.element_spec["image"].shape.as_list() == [None, 20, 31, 3]
    batches = list(dataset)
    assert [len(batch["id"]) for batch in batches] == [3, 3, 1]
    ids = np.concatenate([batch["id"] for batch in batches])
    assert [name.decode() for name in ids] == [example.id for example in examples]
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    for example, image, label in zip(examples, images, labels, strict=True):
        np.testing.assert_array_equal(label, example.labels)
        if suffix == ".png":
            np.testing.assert_array_equal(image, example.image)
        else:
            np.testing.assert_allclose(image.astype(int), example.image, atol=40)


def test_evaluation_of_various_sizes_has_one_image_a_batch(folder):
    batches = take(loader.evaluation_dataset(folder, "train", batch_size=4), 9)
    assert [batch["image"].shape for batch in batches] == [(1, *size, 3) for size in SIZES]
    assert [batch["label"].shape for batch in batches] == [(1, *size) for size in SIZES]


def test_evaluation_of_chosen_images(folder):
    batches = take(loader.evaluation_dataset(folder, "train", numbers=[4, 1]), 2)
    assert [batch["image"].shape for batch in batches] == [(1, *SIZES[i], 3) for i in (4, 1)]


def test_unknown_split(folder):
    with pytest.raises(DataError, match=r"has no split 'val'\. It has: train"):
        loader.evaluation_dataset(folder, "val")


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"crop_size": (0, 4)},
        {"start_step": -1},
        {"scale_range": (2.0, 1.0)},
        {"scale_range": (0.0, 1.0)},
    ],
)
def test_bad_arguments(folder, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        training(folder, **arguments)
    with pytest.raises(ValueError, match="batch_size"):
        loader.evaluation_dataset(folder, "train", batch_size=0)
