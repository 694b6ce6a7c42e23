"""Requests that arrive one by one, labeled in batches."""

import collections
import concurrent.futures
import threading
import time

import numpy as np


class QueueFullError(Exception):
    """More images wait than the queue holds."""


class Batcher:
    """Labels images of concurrent requests in batches, in a thread of its own.

    A batch holds images of one size, in the order of their arrival; it starts when it is full, when
    its first image has waited long enough, or when an image of another size has come.

    Args:
        label: function from uint8 `(batch, height, width, 3)` to a tuple of arrays whose first axis
            is the batch.
        max_batch: int, images of a batch.
        max_wait: float, seconds that the first image of a batch waits for others.
        max_queue: int, images that may wait.
        on_batch: function of the number of images of each batch, for statistics.
    """

    def __init__(
        self, label, *, max_batch=8, max_wait=0.01, max_queue=64, on_batch=lambda size: None
    ):
        self._label = label
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._on_batch = on_batch
        self._waiting = collections.deque()  # Of (arrival, image, future).
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def __len__(self):
        """Images that wait."""
        return len(self._waiting)

    def submit(self, image):
        """Queues an image.

        Args:
            image: uint8 `(height, width, 3)`.

        Returns:
            `concurrent.futures.Future` of the tuple of this image's arrays.

        Raises:
            QueueFullError: if too many images wait.
        """
        future = concurrent.futures.Future()
        with self._changed:
            if self._closed or len(self._waiting) >= self._max_queue:
                raise QueueFullError
            self._waiting.append((time.monotonic(), image, future))
            self._changed.notify()
        return future

    def close(self):
        """Labels what waits, and ends the thread."""
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
            self._on_batch(len(images))
            try:
                results = list(zip(*self._label(np.stack(images)), strict=True))
            except Exception as error:  # Belongs to the requests: the next batch may be better.
                for future in futures:
                    future.set_exception(error)
                continue
            for future, result in zip(futures, results, strict=True):
                future.set_result(result)

    def _next_batch(self):
        """Waits for a batch; an empty list when all is done."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            while (missing := self._seconds_to_wait()) > 0:
                self._changed.wait(missing)
            return [self._waiting.popleft() for _ in range(self._ready())]

    def _ready(self):
        """Number of images at the head of the queue that make a batch."""
        shape, count = self._waiting[0][1].shape, 0
        for _, image, _ in self._waiting:
            if image.shape != shape or count == self._max_batch:
                break
            count += 1
        return count

    def _seconds_to_wait(self):
        ready = self._ready()
        if self._closed or ready == self._max_batch or ready < len(self._waiting):
            return 0.0
        return self._waiting[0][0] + self._max_wait - time.monotonic()
