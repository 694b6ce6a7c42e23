import os
import pathlib

import cv2
import numpy as np
import pytest
import tensorflow as tf

from pipelines import augment, encoding, loader, sample_stream
from pipelines.errors import DataError
from pipelines.manifest import read_manifest
from tests.pipelines.tiny_data import (
    ArrayExample,
    noise_example,
    smooth_example,
    solid_examples,
    write,
    write_splits,
)

SIZES = [(40, 52), (33, 47), (64, 48), (30, 90), (41, 41), (52, 40), (37, 60)]


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
    once = take(training(folder, num_parallel_calls=1), 9)
    again = take(training(folder, num_parallel_calls=7), 9)
    assert_same(again, once)
    other = take(training(folder, seed=6), 9)
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
    whole = take(training(folder), 10)
    assert_same(take(training(folder, start_step=start), 10 - start), whole[start:])


def test_a_stream_can_start_after_millions_of_steps(folder):
    far = 10**8
    second = take(training(folder, start_step=far + 1), 1)
    assert_same(take(training(folder, start_step=far), 2)[1:], second)


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
    order = numbers.map(lambda number: sample_stream.shuffled_index(seed, number, count))
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
    shard = read_manifest(folder).splits["train"].shards[0]
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


LOSSES = {
    "deleted": lambda shard: shard.unlink(),
    "cut off": lambda shard: os.truncate(shard, 10),
    "empty": lambda shard: os.truncate(shard, 0),
    "a folder": lambda shard: (shard.unlink(), shard.mkdir()),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_shard_that_is_lost_after_the_start_is_named(tmp_path, loss):
    write(tmp_path, solid_examples(4), num_shards=2)
    arguments = {"batch_size": 1, "crop_size": (4, 4)}
    iterators = [
        iter(training(tmp_path, **arguments)),
        iter(loader.evaluation_dataset(tmp_path, "train", batch_size=1)),
        iter(training(tmp_path, on_error="skip", max_errors=2, **arguments)),
        iter(training(tmp_path, on_error="skip", max_errors=1, **arguments)),
    ]
    lost = sorted(tmp_path.glob("*.tfrecord"))[1]
    LOSSES[loss](lost)
    failing, evaluated, skipping, counting = iterators
    for iterator in (failing, evaluated, counting):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"The shard {lost} is corrupt"):
            for _ in range(40):
                next(iterator)
    # The two images of the other shard take the places of those that are lost.
    seen = {int(next(skipping)["image"][0, 0, 0, 0]) for _ in range(20)}
    assert len(seen) <= 3  # One may have been read ahead.


def draws(count, seed, sizes):
    """Returns the draws for the first samples: image, window, mirrored or not."""
    for number in map(np.int64, range(count)):
        index = sample_stream.shuffled_index(np.int64(seed), number, len(sizes))
        numbers = tf.random.stateless_uniform((5,), tf.constant([seed, number], "int64"))
        size = tf.constant(sizes[index])
        _, extent, shape = augment.draw_extent(numbers[0], size, (32, 40), (0.5, 2.0))
        first = augment.draw_place(numbers[3:], size, extent)
        yield int(index), *(part.numpy() for part in (first, extent, shape)), numbers[1] < 0.5


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
    """Within a neighbourhood of one label, the image has the colour of that label."""
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
    (batch,) = take(training(tmp_path, **arguments), 1)
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


def test_draws_are_uniform_and_change_nothing_else(folder):
    plain, drawn = (take(training(folder, num_draws=n), 40) for n in (0, 5))
    assert_same(drawn, plain)
    draws = np.concatenate([batch["draws"] for batch in drawn])
    assert draws.shape == (80, 5) and draws.dtype == np.float32
    assert len(np.unique(draws)) == draws.size
    # The mean of 400 numbers, within five standard deviations.
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * draws.size)


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
        {"rotation": -1},
        {"max_class_share": 0.0},
        {"on_error": "ignore"},
    ],
)
def test_bad_arguments(folder, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        training(folder, **arguments)
    with pytest.raises(ValueError, match="batch_size"):
        loader.evaluation_dataset(folder, "train", batch_size=0)


def test_turned_crops(tmp_path):
    """Image and labels show the same thing at any angle: the image tells the label's colour."""
    colors = np.uint8([[10, 20, 30], [90, 80, 70], [200, 220, 240]])
    labels = smooth_example(0, (60, 80)).labels
    write(tmp_path, [ArrayExample("0", colors[labels], labels)])
    crops = take(training(tmp_path, batch_size=1, rotation=180), 20)
    plain = take(training(tmp_path, batch_size=1), 20)
    assert not any(
        np.array_equal(a["label"], b["label"]) for a, b in zip(crops, plain, strict=True)
    )
    checked = 0
    for batch in crops:
        labels, image = batch["label"][0], batch["image"][0]
        same = cv2.erode(labels, np.ones((5, 5))) == cv2.dilate(labels, np.ones((5, 5)))
        same[[0, 1, -2, -1]] = same[:, [0, 1, -2, -1]] = False
        outside = same & (labels == 255)
        assert (image[outside] == augment.PAD_COLOR).all()
        same &= labels < 3
        np.testing.assert_array_equal(image[same], colors[labels[same]])
        checked += same.sum()
    assert checked > 20 * 32 * 40 / 4


def test_crops_of_mixed_classes(tmp_path):
    """Three quarters of the image are one class: most windows hold nothing else."""
    labels = np.zeros((80, 80), "uint8")
    labels[:, 60:] = 1
    write(tmp_path, [ArrayExample("0", np.repeat(labels[..., None], 3, 2), labels)])
    arguments = {"batch_size": 1, "crop_size": (20, 20), "scale_range": (1, 1), "flip": False}

    def shares(**more):
        batches = take(training(tmp_path, **arguments, **more), 60)
        for batch in batches:  # They still move together.
            np.testing.assert_array_equal(batch["image"][0, ..., 0], batch["label"][0])
        return np.array([max(np.bincount(b["label"].reshape(-1))) / 400 for b in batches])

    free, limited = shares(), shares(max_class_share=0.75)
    # Of 61 columns those from 46 to 55 give windows with 6 to 15 columns of a class: 0.16.
    assert 0.02 < (free <= 0.75).mean() < 0.4
    assert (limited <= 0.75).mean() > 0.65  # 1 - 0.84^10 is 0.83.
    np.testing.assert_array_equal(limited[free <= 0.75], free[free <= 0.75])


def test_rare_classes_are_shown_more_often(tmp_path):
    examples = solid_examples(9)
    examples[4].labels = np.full((4, 4), 2, "uint8")
    write(tmp_path, examples, num_shards=2)
    arguments = {"batch_size": 1, "crop_size": (4, 4), "scale_range": (1, 1)}
    batches = take(training(tmp_path, repeat_threshold=1.0, **arguments), 110)
    shown = np.bincount([b["image"][0, 0, 0, 0] for b in batches], minlength=9)
    # sqrt(9) = 3 for the one image, sqrt(9 / 8) for the others: 12 to 13 of 110, and 29.
    assert abs(shown[4] - 110 * 3 / (3 + 8 * (9 / 8) ** 0.5)) <= 3
    assert shown.min() >= 8


def test_unusable_records_are_skipped_counted_and_named(tmp_path, capfd):
    write(tmp_path, solid_examples(6), num_shards=1)
    path = corrupt(tmp_path, 2)
    arguments = {"batch_size": 1, "crop_size": (4, 4), "scale_range": (1, 1), "on_error": "skip"}
    batches = take(training(tmp_path, **arguments), 12)
    numbers = [int(batch["image"][0, 0, 0, 0]) for batch in batches]
    # Image 3 stands in for image 2, once in each epoch; all else stays in its place.
    assert sorted(numbers[:6]) == sorted(numbers[6:]) == [0, 1, 3, 3, 4, 5]
    assert set(batches[0]) == {"image", "label"}
    said = capfd.readouterr().err
    # Once, however often it is met.
    line = f"skipped, 1 so far (data.max_errors: 10): The shard {path} is corrupt, gone or another"
    assert said.count("skipped") == 1 and line in said
    corrupt(tmp_path, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more than data\.max_errors, 1"):
        take(training(tmp_path, max_errors=1, **arguments), 14)


def test_images_that_were_never_images(tmp_path, monkeypatch):
    """Sound to the last byte, and of no use."""
    encode_record = encoding.encode_record

    def spoil(image, labels, *, index, **more):
        image = image[:40] + bytes(len(image) - 40) if index == 1 else image
        return encode_record(image, labels, index=index, **more)

    monkeypatch.setattr(encoding, "encode_record", spoil)
    write(tmp_path, solid_examples(3), num_shards=1)
    arguments = {"batch_size": 3, "crop_size": (4, 4), "scale_range": (1, 1)}
    with pytest.raises(tf.errors.InvalidArgumentError):
        take(training(tmp_path, **arguments), 1)
    (batch,) = take(training(tmp_path, on_error="skip", **arguments), 1)
    assert sorted(batch["image"][:, 0, 0, 0]) == [0, 2, 2]


def test_all_records_unusable_is_no_endless_search(tmp_path):
    write(tmp_path, solid_examples(3), num_shards=1)
    for index in range(3):
        corrupt(tmp_path, index)
    arguments = {"batch_size": 1, "crop_size": (4, 4), "on_error": "skip", "max_errors": 1000}
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Nor is any of the next 2 images usable"
    ):
        take(training(tmp_path, **arguments), 1)


def test_a_service_gives_every_sample_once(tmp_path):
    write(tmp_path, solid_examples(11), num_shards=2)
    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    workers = [
        tf.data.experimental.service.WorkerServer(
            tf.data.experimental.service.WorkerConfig(dispatcher_address=address)
        )
        for _ in range(2)
    ]
    arguments = {"batch_size": 1, "crop_size": (4, 4), "scale_range": (1, 1), "num_draws": 2}
    # A worker may run ahead of the other, as far as its buffers reach.
    alone = {tuple(batch["draws"][0]) for batch in take(training(tmp_path, **arguments), 400)}
    for more in ({}, {"on_error": "skip"}):
        served = take(training(tmp_path, service=dispatcher.target, **arguments, **more), 14)
        draws = [tuple(batch["draws"][0]) for batch in served]
        assert len(set(draws)) == 14
        assert set(draws) <= alone
        assert served[0]["image"].shape == (1, 4, 4, 3)
    del workers


def test_cached_in_memory(folder):
    plain, cached = (
        take(training(folder, cache=c, rotation=r), 12) for c, r in ((None, 0), ("memory", 0))
    )
    for one, other in zip(plain, cached, strict=True):
        np.testing.assert_array_equal(other["label"], one["label"])
        # Windows of a JPEG differ in chroma at their edges.
        difference = np.abs(one["image"].astype(int) - other["image"])
        assert np.median(difference) <= 1 and difference.mean() < 2


def test_cached_in_a_folder(folder, tmp_path, capfd):
    cache = tmp_path / "cache"
    assert_same(take(training(folder, cache=str(cache)), 6), take(training(folder), 6))
    assert capfd.readouterr().err.count("copying") == 3
    copies = sorted(cache.iterdir())
    assert len(copies) == 3
    # What is read is the copies; what is not whole is copied again.
    copies[0].write_bytes(copies[0].read_bytes()[:-1])
    for copy in copies[1:]:
        copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"The shard {cache}.* is corrupt"):
        take(training(folder, cache=str(cache)), 4)
    assert capfd.readouterr().err.count("copying") == 1


def test_a_cache_is_no_place_for_a_corrupt_shard(tmp_path):
    write(tmp_path / "data", solid_examples(3), num_shards=1)
    path = corrupt(tmp_path / "data", 1)
    with pytest.raises(DataError, match=f"{path} is corrupt: its checksum"):
        training(tmp_path / "data", cache=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(DataError, match=f"{path} is corrupt"):
        training(tmp_path / "data", cache="memory")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache must be a folder"):
        training(tmp_path / "data", cache=str(tmp_path / "file"))


@pytest.mark.parametrize("more", [{"service": "grpc://localhost:1"}, {"on_error": "skip"}])
def test_memory_cannot_be_combined_with(folder, more):
    with pytest.raises(DataError, match="cannot be combined with"):
        training(folder, cache="memory", **more)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Three splits of solid images: 0 to 4, 10 to 13, 20 to 25."""
    folder = tmp_path_factory.mktemp("splits")
    parts = {"train": range(5), "val": range(10, 14), "extra": range(20, 26)}
    examples = {
        name: [solid for solid in solid_examples(26) if int(solid.id) in part]
        for name, part in parts.items()
    }
    for number, example in enumerate(examples["val"]):
        example.labels = np.full((4, 4), number % 2, "uint8")
    write_splits(folder, examples)
    return folder


def colors(dataset, count):
    return [int(c) for batch in take(dataset, count) for c in batch["image"][:, 0, 0, 0]]


def test_several_splits_are_one_training_set(splits):
    arguments = {"batch_size": 3, "crop_size": (4, 4), "seed": 1, "scale_range": (1, 1)}
    found = colors(loader.training_dataset(splits, ["train", "val"], **arguments), 6)
    everything = [*range(5), *range(10, 14)]
    assert sorted(found[:9]) == sorted(found[9:]) == everything and found[:9] != found[9:]
    again = loader.training_dataset(splits, {"train": 1, "val": 1}, start_step=2, **arguments)
    assert colors(again, 4) == found[6:]
    parts = [
        colors(
            loader.training_dataset(
                splits,
                ["train", "val"],
                **{**arguments, "batch_size": 6},
                worker=worker,
                num_workers=2,
                num_replicas=2,
            ),
            2,
        )
        for worker in (0, 1)
    ]
    assert [*parts[0][:3], *parts[1][:3], *parts[0][3:], *parts[1][3:]] == found[:12]


def test_an_epoch_shows_each_split_in_its_ratio(splits):
    arguments = {"batch_size": 1, "crop_size": (4, 4), "seed": 1, "scale_range": (1, 1)}
    dataset = loader.training_dataset(splits, {"train": 2, "extra": 0.5}, **arguments)
    epoch = 2 * 5 + 6 // 2
    found = colors(dataset, 20 * epoch)
    seen = np.zeros(26)
    for first in range(0, len(found), epoch):
        part = found[first : first + epoch]
        assert [part.count(number) for number in range(5)] == [2] * 5
        assert sum(number >= 20 for number in part) == 3 == len(set(part)) - 5
        np.add.at(seen, part, 1)
    assert set(seen[20:]) <= set(range(3, 18)) and seen[20:].sum() == 60  # Each in its turn.


def test_counts_of_several_splits(splits):
    manifest = read_manifest(splits)
    both = manifest.union({"train": 1, "val": 0.25})
    # 4 x 4 pixels an image; of val's four images every other one is of class 1.
    assert both.pixels == [5 * 16 + 2 * 16 // 4, 2 * 16 // 4, 0, 0]
    assert both.images == [7, 2, 0, 0] and both.num_images == 9 and both.image_size == [4, 4]
    assert manifest.union("val").pixels == manifest.split("val").pixels
    with pytest.raises(DataError, match=r"no split 'none'\. It has: train, val, extra"):
        manifest.union(["train", "none"])


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """Images of class 0 with one pixel of class 2, the last one of class 0 alone."""
    folder = tmp_path_factory.mktemp("rare")
    rng = np.random.default_rng(0)
    examples = []
    for number in range(5):
        labels = np.zeros((150, 300), "uint8")
        if number < 4:
            labels[tuple(rng.integers(20, (130, 280)))] = 2
        image = np.dstack([labels, rng.integers(0, 9, labels.shape), np.full_like(labels, number)])
        examples.append(ArrayExample(str(number), image.astype("uint8"), labels))
    write(folder, examples)
    return folder


@pytest.mark.parametrize("cache", [None, "memory"])
def test_crops_are_centered_on_rare_classes(rare, cache):
    arguments = {
        "batch_size": 1,
        "crop_size": (32, 40),
        "seed": 1,
        "scale_range": (1, 1),
        "cache": cache,
        "flip": False,
    }
    for share, most in ((1.0, 1.0), (1.0, 0.5), (0.25, 1.0)):
        dataset = loader.training_dataset(
            rare,
            "train",
            rare_classes=[1, 2],
            rare_probability=share,
            max_class_share=most,
            **arguments,
        )
        centered = 0
        for batch in take(dataset, 120 if share < 1 else 12):
            labels, image = batch["label"][0], batch["image"][0]
            assert (image[labels == 2, 0] == 2).all()
            if share == 1:
                middle = labels[15:18, 19:22]
                assert (middle == 2).any() == (image[0, 0, 2] < 4)
            centered += labels[16, 20] == 2
        if share < 1:  # Four of five images have such a pixel; 5 standard deviations.
            assert abs(centered - 120 * 0.8 * 0.25) < 5 * np.sqrt(120 * 0.2 * 0.8)


def test_rare_crops_resume_and_leave_the_rest_of_the_stream_alone(rare):
    arguments = {"batch_size": 2, "crop_size": (32, 40), "seed": 1, "num_draws": 3}
    plain = take(loader.training_dataset(rare, "train", **arguments), 12)
    settings = {**arguments, "rare_classes": [2], "rare_probability": 0.3}
    found = take(loader.training_dataset(rare, "train", **settings), 12)
    assert_same(
        take(loader.training_dataset(rare, "train", start_step=5, **settings), 7), found[5:]
    )
    same = [
        np.array_equal(a["label"][i], b["label"][i])
        for a, b in zip(plain, found, strict=True)
        for i in (0, 1)
    ]
    assert 8 < sum(same) < 24
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_array_equal(one["draws"], other["draws"])


def test_any_pixel_of_any_rare_class_may_be_in_the_middle():
    labels = np.zeros((6, 7), "uint8")
    labels[1, 2] = labels[1, 5] = labels[5, 0] = 3
    labels[0, 6] = labels[5, 6] = 9
    rng = np.random.default_rng(0)
    draw = tf.function(augment.draw_pixel)
    counts = {}
    for numbers in rng.random((600, 2), "float32"):
        pixel, found = draw(labels, [1, 3, 9], numbers)
        assert found
        counts[tuple(pixel.numpy())] = counts.get(tuple(pixel.numpy()), 0) + 1
    expected = {(1, 2): 100, (1, 5): 100, (5, 0): 100, (0, 6): 150, (5, 6): 150}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[key] - 600 * n / 600) < 60 for key, n in expected.items())
    assert not draw(labels, [1, 4], [0.5, 0.999])[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rare_classes": [7]}, r"`rare_classes` must be in \[0, 3\)\. Received: \[7\]"),
        ({"rare_probability": 1.5}, r"must be 0 to 1\. Received: 1\.5"),
    ],
)
def test_mistakes_about_rare_classes(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        training(folder, **arguments)
