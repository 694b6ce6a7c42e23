"""Selection from a stream in bounded memory: random samples of classes, largest values."""

import heapq

import numpy as np


class ClassSample:
    """Draws a uniform random sample of the rows of each class.

    Every row is assigned a random number; the rows with the smallest numbers are kept. The sample
    depends on the order of the rows, not on their batches.

    Args:
        num_classes: int.
        size: int, the largest number of rows to keep of each class.
        seed: int.
    """

    def __init__(self, num_classes, size, *, seed=0):
        self._num_classes = num_classes
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._noise = [np.zeros(0) for _ in range(num_classes)]
        self._rows = [None] * num_classes

    def add(self, classes, take):
        """Adds rows.

        Args:
            classes: int array `(rows,)`; rows with values outside `[0, num_classes)` are ignored.
            take: function from an int array of indices into `classes` to a tuple of arrays, one row
                for each index. Called only for rows that are drawn.
        """
        noise = self._rng.random(len(classes))
        for n in np.unique(classes):
            if not 0 <= n < self._num_classes:
                continue
            members = np.flatnonzero(classes == n)
            if len(self._noise[n]) == self._size:
                members = members[noise[members] < self._noise[n][-1]]
            members = members[np.argsort(noise[members], kind="stable")[: self._size]]
            if not len(members):
                continue
            rows = take(members)
            joined = np.concatenate([self._noise[n], noise[members]])
            order = np.argsort(joined, kind="stable")[: self._size]
            before = self._rows[n]
            if before is not None:
                rows = [np.concatenate(pair) for pair in zip(before, rows, strict=True)]
            self._noise[n] = joined[order]
            self._rows[n] = tuple(np.asarray(array)[order] for array in rows)

    def count(self, n):
        """Returns the number of rows kept of class `n`."""
        return len(self._noise[n])

    def of_class(self, n):
        """Returns the arrays kept of class `n`, in the form of `take`; None if there are none."""
        return self._rows[n]

    def all(self):
        """Returns all rows kept, sorted by class.

        Returns:
            `(classes, arrays)`: int array `(rows,)` and a tuple of arrays with as many rows, or
            None in place of the tuple if no row is kept.
        """
        present = [n for n in range(self._num_classes) if self.count(n)]
        classes = np.repeat(np.array(present, "int64"), [self.count(n) for n in present])
        if not present:
            return classes, None
        columns = zip(*(self._rows[n] for n in present), strict=True)
        return classes, tuple(np.concatenate(column) for column in columns)


class LargestValues:
    """Keeps the items with the highest values; among equal values, the earlier items.

    Args:
        count: int >= 0.
    """

    def __init__(self, count):
        self._count = count
        self._heap = []
        self._number = 0

    def add(self, value, item):
        """Adds an item; `value` is a float, not NaN."""
        entry = (value, -self._number, item)
        self._number += 1
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def items(self):
        """Returns the items kept, highest value first."""
        return [item for *_, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def spread(count, total):
    """Selects `count` evenly spaced numbers of `range(total)`, or all if there are fewer.

    Args:
        count: int.
        total: int.

    Returns:
        list of int, ascending.
    """
    count = min(count, total)
    return [int((i + 0.5) * total / count) for i in range(count)]
