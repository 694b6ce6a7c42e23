"""What to keep of a stream, in memory that does not grow with it."""

import heapq

import numpy as np


class ClassSample:
    """Draws rows of each class, each row of a class with the same chance.

    Every row draws a random number; those with the least are kept. The order of the rows, not
    their division into parts, decides the sample.

    Args:
        num_classes: int.
        size: int, rows that are kept of each class.
        seed: int.
    """

    def __init__(self, num_classes, size, *, seed=0):
        self._num_classes = num_classes
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._lots = [np.zeros(0) for _ in range(num_classes)]
        self._rows = [None] * num_classes

    def add(self, classes, take):
        """Adds rows.

        Args:
            classes: int array `(rows,)`; rows of values outside `[0, num_classes)` are left out.
            take: function from an int array of places in `classes` to a tuple of arrays, one row
                for each place. Called for the rows that are drawn, only.
        """
        lots = self._rng.random(len(classes))
        for n in np.unique(classes):
            if not 0 <= n < self._num_classes:
                continue
            members = np.flatnonzero(classes == n)
            if len(self._lots[n]) == self._size:
                members = members[lots[members] < self._lots[n][-1]]
            members = members[np.argsort(lots[members], kind="stable")[: self._size]]
            if not len(members):
                continue
            rows = take(members)
            drawn = np.concatenate([self._lots[n], lots[members]])
            order = np.argsort(drawn, kind="stable")[: self._size]
            before = self._rows[n]
            if before is not None:
                rows = [np.concatenate(pair) for pair in zip(before, rows, strict=True)]
            self._lots[n] = drawn[order]
            self._rows[n] = tuple(np.asarray(array)[order] for array in rows)

    def count(self, n):
        """Rows that are kept of class `n`."""
        return len(self._lots[n])

    def of_class(self, n):
        """The arrays that are kept of class `n`, as `take` gave them; None if there are none."""
        return self._rows[n]

    def all(self):
        """All that is kept, class by class.

        Returns:
            `(classes, arrays)`: int array `(rows,)` and a tuple of arrays, as many rows; None in
            place of the tuple if nothing is kept.
        """
        present = [n for n in range(self._num_classes) if self.count(n)]
        classes = np.repeat(np.array(present, "int64"), [self.count(n) for n in present])
        if not present:
            return classes, None
        columns = zip(*(self._rows[n] for n in present), strict=True)
        return classes, tuple(np.concatenate(column) for column in columns)


class Top:
    """Keeps the items of the highest values; of equal ones those that came first.

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
        """The items kept, highest value first."""
        return [item for *_, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def spread(count, total):
    """Spreads numbers evenly: `count` of `range(total)`, or all if there are fewer.

    Args:
        count: int.
        total: int.

    Returns:
        list of int, ascending.
    """
    count = min(count, total)
    return [int((i + 0.5) * total / count) for i in range(count)]
