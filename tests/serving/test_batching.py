import threading

import numpy as np
import pytest

from kseg.serving.batching import Batcher
from kseg.serving.limits import Limits


class Labeler:
    """Returns the first channel; blocks until `go` is set; notes the sizes of its batches."""

    def __init__(self):
        self.go, self.started, self.sizes = threading.Event(), threading.Event(), []

    def __call__(self, images):
        self.started.set()
        assert self.go.wait(20)
        self.sizes.append(len(images))
        if (images == 13).all():
            raise ValueError("thirteen")
        return images[..., 0], images[..., 0] / 255


def image(value, size=(4, 5)):
    return np.full((*size, 3), value, "uint8")


def test_each_request_gets_its_own_result_and_batches_hold_one_size():
    label = Labeler()
    batcher = Batcher(label, Limits(max_batch=3, max_wait=0.0))
    first = batcher.submit(image(1))
    assert label.started.wait(20)
    sizes = [(4, 5)] * 4 + [(6, 2)] + [(4, 5)]
    futures = [first] + [batcher.submit(image(i + 2, size)) for i, size in enumerate(sizes)]
    label.go.set()
    for i, (future, size) in enumerate(zip(futures, [(4, 5), *sizes], strict=True)):
        labels, confidence = future.result(20)
        np.testing.assert_array_equal(labels, np.full(size, i + 1))
        np.testing.assert_allclose(confidence, np.full(size, (i + 1) / 255))
    assert label.sizes == [1, 3, 1, 1, 1]
    batcher.close()


def test_an_image_waits_for_others():
    label = Labeler()
    label.go.set()
    batcher = Batcher(label, Limits(max_batch=2, max_wait=60.0))
    futures = [batcher.submit(image(i)) for i in range(2)]  # Full: neither waits a minute.
    assert [int(f.result(20)[0][0, 0]) for f in futures] == [0, 1]
    assert label.sizes == [2]
    last = batcher.submit(image(7))
    batcher.close()  # Does not wait for the minute, either.
    assert int(last.result(0)[0][0, 0]) == 7


def test_an_error_and_a_cancelled_request():
    label = Labeler()
    batcher = Batcher(label, Limits(max_batch=1, max_wait=0.0))
    futures = [batcher.submit(image(1))]
    assert label.started.wait(20)
    futures += [batcher.submit(image(13)), batcher.submit(image(3))]
    assert len(batcher) == 2
    assert futures[2].cancel()
    label.go.set()
    batcher.close()
    assert int(futures[0].result(0)[0][0, 0]) == 1
    with pytest.raises(ValueError, match="thirteen"):
        futures[1].result(0)
    assert label.sizes == [1, 1]


def test_a_batch_of_several_has_a_limited_number_of_pixels():
    label = Labeler()
    batcher = Batcher(label, Limits(max_batch=8, max_pixels=45, max_wait=0.0))
    futures = [batcher.submit(image(1, (10, 10)))]  # Larger than the limit: alone.
    assert label.started.wait(20)
    futures += [batcher.submit(image(i)) for i in range(5)]  # 20 pixels each: two by two.
    label.go.set()
    batcher.close()
    assert [int(f.result(0)[0][0, 0]) for f in futures] == [1, 0, 1, 2, 3, 4]
    assert label.sizes == [1, 2, 2, 1]


def test_the_thread_survives_a_network_that_loses_images():
    results = [(np.zeros((1, 4, 5)),), (np.zeros((2, 4, 5)),)]
    batcher = Batcher(lambda images: results.pop(0), Limits(max_batch=2, max_wait=60.0))
    lost = [batcher.submit(image(i)) for i in range(2)]
    for future in lost:
        with pytest.raises(ValueError, match="zip"):
            future.result(20)
    assert [f.result(20)[0].shape for f in [batcher.submit(image(i)) for i in range(2)]]
    batcher.close()
