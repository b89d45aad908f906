"""Several samples into rows of one length, few rows and little padding: first-fit decreasing."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def first_fit_decreasing(lengths: Sequence[int] | npt.NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Puts the longest sample first, each into the first row that still has room for it.

    At most 11/9 of the least possible number of rows, and 6/9 of a row. Time is O(n log n); the same lengths give the
    same rows.

    Args:
        lengths: [n] tokens of each sample, each 1 to ``capacity``.
        capacity: tokens of a row.
    Returns:
        the rows: indices of their samples in the order in which they were put there, by length, then by index.
    Raises:
        ValueError: a length is below 1 or above ``capacity``; names the sample.
    Source: Dosa 2007, the tight bound of first fit decreasing.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((sizes < 1) | (sizes > capacity))
    if len(wrong):
        raise ValueError(f"length {sizes[wrong[0]]} of sample {wrong[0]} must be 1 to the capacity {capacity}")
    order = np.argsort(-sizes, kind="stable")
    rows: list[list[int]] = []
    room = _Rooms(len(sizes))
    for index in order.tolist():
        size = int(sizes[index])
        row = room.first_with(size)
        if row == len(rows):
            rows.append([])
            room.set(row, capacity)
        rows[row].append(index)
        room.take(row, size)
    return rows


class _Rooms:
    """The room that is left in each row: a tree whose inner nodes hold the largest room below them."""

    def __init__(self, num_rows: int) -> None:
        self._leaves = 1 << max(0, (num_rows - 1).bit_length())
        self._largest = [0] * (2 * self._leaves)
        self._num_open = 0

    def first_with(self, size: int) -> int:
        """The first open row with room for ``size``; the number of open rows if there is none."""
        if self._largest[1] < size:
            return self._num_open
        node = 1
        while node < self._leaves:
            node *= 2
            node += self._largest[node] < size
        return node - self._leaves

    def set(self, row: int, room: int) -> None:
        """Opens the next row."""
        self._num_open = row + 1
        self._update(row, room)

    def take(self, row: int, size: int) -> None:
        """Makes the room of a row smaller."""
        self._update(row, self._largest[self._leaves + row] - size)

    def _update(self, row: int, room: int) -> None:
        node = self._leaves + row
        self._largest[node] = room
        while node > 1:
            node //= 2
            self._largest[node] = max(self._largest[2 * node], self._largest[2 * node + 1])
