"""Batching of concurrent requests for inference."""

import collections
import concurrent.futures
import itertools
import threading
import time

import numpy as np


class Batcher:
    """Labels images of concurrent requests in batches, in a separate thread.

    A batch holds images of equal size in order of arrival. It is run when it is full, when its
    first image has waited long enough, or when an image of another size arrives. The number of
    waiting images is not limited.

    Args:
        label: function from uint8 `(batch, height, width, 3)` to a tuple of arrays whose first axis
            is the batch.
        limits: `kseg.serving.limits.Limits`.
        on_batch: function called with the number of images in each batch, for statistics.
    """

    def __init__(self, label, limits, *, on_batch=lambda size: None):
        self._label = label
        self._limits = limits
        self._on_batch = on_batch
        self._waiting = collections.deque()  # Tuples (arrival, image, future).
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def __len__(self):
        """Number of waiting images."""
        return len(self._waiting)

    def submit(self, image):
        """Queues an image.

        Args:
            image: uint8 `(height, width, 3)`.

        Returns:
            `concurrent.futures.Future` of the tuple of this image's arrays.
        """
        future = concurrent.futures.Future()
        with self._changed:
            self._waiting.append((time.monotonic(), image, future))
            self._changed.notify()
        return future

    def close(self):
        """Labels the waiting images, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self):
        while batch := self._next_batch():
            batch = [(image, f) for _, image, f in batch if f.set_running_or_notify_cancel()]
            if not batch:
                continue
            images, futures = zip(*batch, strict=True)
            try:
                self._on_batch(len(images))
                results = list(zip(*self._label(np.stack(images)), strict=True))
                pairs = list(zip(futures, results, strict=True))
            except Exception as error:  # Passed on to these requests; the next batch may succeed.
                for future in futures:
                    future.set_exception(error)
                continue
            for future, result in pairs:
                future.set_result(result)

    def _next_batch(self):
        """Waits for a batch; returns an empty list when closed and all images are labeled."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            while (missing := self._seconds_to_wait()) > 0:
                self._changed.wait(missing)
            return [self._waiting.popleft() for _ in range(self._ready()[0])]

    def _ready(self):
        """Returns the size of the next batch at the head of the queue, and its maximum."""
        shape = self._waiting[0][1].shape
        by_size = self._limits.max_pixels // (shape[0] * shape[1])
        most = max(1, min(self._limits.max_batch, by_size))
        head = itertools.islice(self._waiting, most)
        same = itertools.takewhile(lambda item: item[1].shape == shape, head)
        return sum(1 for _ in same), most

    def _seconds_to_wait(self):
        ready, most = self._ready()
        if self._closed or ready == most or ready < len(self._waiting):
            return 0.0
        return self._waiting[0][0] + self._limits.max_wait - time.monotonic()
