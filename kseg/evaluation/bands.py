"""Sliding-window inference on images that do not fit into memory."""

import concurrent.futures
import tempfile

import numpy as np
import tensorflow as tf

from kseg.evaluation.evaluator import check_logits, images_spec
from kseg.evaluation.sliding_window import place_windows, sum_weights, window_weights

_MOST_HELD = 1 << 29  # Bytes of sums kept in memory; more are kept in a temporary file.


class BandedWindows:
    """Computes what `SlidingWindow` computes, from rows of an image read one band after another.

    A row of windows needs only the image rows that it covers and, from the row of windows above,
    the weighted sums where both overlap. All sums are made in the order of `SlidingWindow`, so
    the results are equal up to the rounding of the network in batches of another size.

    Args:
        model, num_classes, window, overlap, batch_size, blend: as for
            `kseg.evaluation.sliding_window.SlidingWindow`.
        pixel_format: `kseg.pixel_format.PixelFormat` of the image; None: 8-bit RGB.

    Attributes:
        sums_bytes: int, bytes of sums of the last call that were kept at the same time.
    """

    def __init__(
        self,
        model,
        num_classes,
        window,
        *,
        overlap=1 / 3,
        batch_size=4,
        blend="flat",
        pixel_format=None,
    ):
        self._num_classes = num_classes
        self._window, self._overlap, self._blend = tuple(window), overlap, blend
        self._batch_size = batch_size
        self.sums_bytes = 0

        @tf.function(input_signature=[images_spec(pixel_format)], autograph=False)
        def call(images):
            logits = model(images, training=False)
            check_logits(logits, num_classes)
            return tf.cast(logits, "float32")

        self._call = call

    def num_windows(self, size):
        """Returns the number of windows of an image of `(height, width)`."""
        (_, rows), (_, columns) = self._place(size)
        return len(rows) * len(columns)

    def __call__(self, size, read, *, progress=None):
        """Yields the logits of an image in blocks.

        Args:
            size: `(height, width)` of the image, pixels.
            read: function from `(first, last)` to the image's rows `first` to `last - 1`, uint8
                `(last - first, width, 3)`, or of the pixel format; called in ascending order, once
                for each row, from one other thread.
            progress: function called with the number of windows since its last call; or None.

        Yields:
            `(row, column, logits)`: position of a block, and its float32 `(height, width,
            num_classes)`. Blocks do not overlap and cover the image: row after row of blocks, from
            left to right in each, all blocks of a row being equally high.
        """
        (height, rows), (width, columns) = self._place(size)
        down = window_weights(size[0], rows, height, self._blend).numpy()
        across = window_weights(size[1], columns, width, self._blend).numpy()
        totals = [
            sum_weights(*arguments).numpy()
            for arguments in ((size[0], rows, down), (size[1], columns, across))
        ]
        ends = [*rows[1:], size[0]]
        above = None
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            pending = reader.submit(read, 0, height)
            image = None
            for i, row in enumerate(rows):
                fresh = pending.result()
                kept = [] if image is None else [image[row - rows[i - 1] :]]
                image = np.concatenate([*kept, fresh])
                if i + 1 < len(rows):  # While the network sees these rows.
                    pending = reader.submit(read, row + height, rows[i + 1] + height)
                done = ends[i] - row
                below = _Sums(size[1], height - done, self._num_classes, above)
                self.sums_bytes = below.bytes
                blocks = self._row(image, columns, width, down[i], across, above, below, progress)
                for column, sums in blocks:
                    stop = column + sums.shape[1]
                    weights = totals[0][row : ends[i], None] * totals[1][None, column:stop]
                    yield row, column, sums / weights[..., None]
                above = below

    def _place(self, size):
        placed = (
            place_windows(extent, window, self._overlap, self._blend)
            for extent, window in zip(size, self._window, strict=True)
        )
        return [(int(extent), starts.numpy().tolist()) for extent, starts in placed]

    def _row(self, image, columns, width, down, across, above, below, progress):
        """Yields `(column, sums)` of the finished rows of a row of windows.

        Args:
            image: `(height, image width, channels)`, the rows that the windows cover.
            columns: list of int, where the windows begin.
            width: int, extent of the windows.
            down: float32 `(height,)`, weights of the rows.
            across: float32 `(windows, width)`, weights of the columns.
            above: `_Sums` of the windows above, or None.
            below: `_Sums` to fill for the windows below; the rows that it leaves are finished.
            progress: as in `__call__`.
        """
        height, total = image.shape[:2]
        done = height - below.height
        ends = [*columns[1:], total]
        sums = np.zeros((height, 0, self._num_classes), "float32")
        for first in range(0, len(columns), self._batch_size):
            numbers = range(first, min(first + self._batch_size, len(columns)))
            windows = [image[:, columns[j] : columns[j] + width] for j in numbers]
            logits = self._call(np.stack(windows)).numpy()
            for j, values in zip(numbers, logits, strict=True):
                seen = columns[j] + sums.shape[1]
                fresh = np.zeros((height, columns[j] + width - seen, self._num_classes), "float32")
                if above is not None:
                    fresh[: above.height] = above.load(seen, columns[j] + width)
                sums = np.concatenate([sums, fresh], axis=1) if sums.shape[1] else fresh
                if self._blend != "flat":
                    values = values * (down[:, None] * across[j])[..., None]
                sums += values
                count = ends[j] - columns[j]
                yield columns[j], sums[:done, :count]
                below.store(columns[j], sums[done:, :count])
                sums = sums[:, count:]
            if progress is not None:
                progress(len(numbers))


class _Sums:
    """Sums of rows that the next row of windows completes, in memory or in a temporary file.

    Args:
        width: int, width of the image.
        height: int, number of rows.
        num_classes: int.
        other: `_Sums` that is read while this is filled, and not used afterwards; its memory is
            used again, because each column is loaded before it is stored; None for the first band.
    """

    def __init__(self, width, height, num_classes, other=None):
        self.height = height
        self._shape = (width, height, num_classes)
        self.bytes = 4 * width * height * num_classes
        self._file = self._array = None
        if other is not None and other.height == height:
            self._file, self._array = other._file, other._array
        elif self.bytes > _MOST_HELD:
            self._file = tempfile.TemporaryFile(prefix="kseg-", buffering=0)  # noqa: SIM115 - removed with this.
        else:
            self._array = np.empty(self._shape, "float32")

    def load(self, first, last):
        """Returns the columns `first` to `last - 1`, float32 `(height, columns, num_classes)`."""
        if self._file is None:
            values = self._array[first:last]
        else:
            shape = (last - first, *self._shape[1:])
            self._file.seek(first * 4 * self._shape[1] * self._shape[2])
            values = np.fromfile(self._file, "float32", int(np.prod(shape))).reshape(shape)
        return values.swapaxes(0, 1)

    def store(self, first, values):
        """Stores columns from `first` on, as `load` returns them."""
        values = values.swapaxes(0, 1)
        if self._file is None:
            self._array[first : first + len(values)] = values
        else:
            self._file.seek(first * 4 * self._shape[1] * self._shape[2])
            self._file.write(np.ascontiguousarray(values).tobytes())
