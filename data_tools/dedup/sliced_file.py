"""Records of many slices in one file: written as they come, a slice found without reading the others.

The file is chunks of records, each ordered by slice, then the place of every slice in every chunk ([chunks, slices + 1]
u64, in records), then the number of chunks and of slices (u64 each).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output
from data_tools.io.system_errors import naming

_COUNTS = np.dtype([("chunks", "<u8"), ("slices", "<u8")])
_PLACE = np.dtype("<u8")


class SliceWriter:
    """Writes such a file. It appears when the block ends well; if it ends by an exception it does not.

    Args:
        path: the file.
        num_slices: at least 1.
        dtype: of a record.
        buffer_bytes: of records held in memory; a chunk.
    """

    def __init__(self, path: Path, num_slices: int, dtype: "np.dtype[Any]", buffer_bytes: int = 64 << 20) -> None:
        self._path = path
        self._num_slices = num_slices
        self._dtype = dtype
        self._buffer_bytes = buffer_bytes
        self._pending: list[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]] = []
        self._pending_bytes = 0
        self._written = 0
        self._places: list[npt.NDArray[np.uint64]] = []
        self._exit = ExitStack()

    def __enter__(self) -> "SliceWriter":
        # The outputs of a task are synced with its manifest.
        self._stream = self._exit.enter_context(atomic_output(self._path, sync=False))
        # Left first: what is still held in memory is written before the file gets its name.
        self._exit.push(self._finish)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def add(self, slices: npt.NDArray[np.int64], records: npt.NDArray[Any]) -> None:
        """Adds records [n], each to the slice of its number [n]."""
        self._pending.append((slices, records))
        self._pending_bytes += records.nbytes
        if self._pending_bytes >= self._buffer_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._pending_bytes:
            return
        slices = np.concatenate([slices for slices, _ in self._pending])
        records = np.concatenate([records for _, records in self._pending])
        self._pending, self._pending_bytes = [], 0
        order = np.argsort(slices, kind="stable")
        counts = np.bincount(slices, minlength=self._num_slices)
        self._places.append(np.concatenate(([0], np.cumsum(counts))).astype(_PLACE) + np.uint64(self._written))
        self._stream.write(records[order].data.cast("B") if len(records) else b"")
        self._written += len(records)

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            for places in self._places:
                self._stream.write(places.tobytes())
            self._stream.write(np.array([(len(self._places), self._num_slices)], dtype=_COUNTS).tobytes())


def read_slice(path: Path, dtype: "np.dtype[Any]", number: int) -> Iterator[npt.NDArray[Any]]:
    """The records of one slice, a chunk at a time, in the order in which they were added.

    Raises:
        DataError: the file is damaged, or has no such slice.
    """
    with naming(path), path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        chunks, slices = _read(stream.fileno(), max(size - _COUNTS.itemsize, 0), 1, _COUNTS, path)[0].tolist()
        table = size - _COUNTS.itemsize - _PLACE.itemsize * chunks * (slices + 1)
        if table < 0 or table % dtype.itemsize or not number < slices:
            raise DataError(f"{path}: {size} bytes are no file of {slices} slices; delete it and run again")
        for chunk in range(chunks):
            position = table + _PLACE.itemsize * (chunk * (slices + 1) + number)
            first, stop = _read(stream.fileno(), position, 2, _PLACE, path).tolist()
            if not first <= stop <= table // dtype.itemsize:
                raise DataError(f"{path}: slice {number} has records {first} to {stop}; delete it and run again")
            if first < stop:
                yield _read(stream.fileno(), dtype.itemsize * first, stop - first, dtype, path)


def _read(descriptor: int, position: int, count: int, dtype: "np.dtype[Any]", path: Path) -> npt.NDArray[Any]:
    array = np.empty(count, dtype=dtype)
    room = array.data.cast("B")
    while room:
        size = os.preadv(descriptor, [room], position)
        if not size:
            raise DataError(f"{path}: {len(room)} bytes are missing; delete it and run again")
        room, position = room[size:], position + size
    return array


def slice_numbers(values: npt.NDArray[np.uint64], num_slices: int) -> npt.NDArray[np.int64]:
    """[n] the slice of each value: its top bits; ``num_slices`` is a power of two."""
    # Two shifts: one by 64 is not defined.
    return ((values >> np.uint64(1)) >> np.uint64(63 - (num_slices.bit_length() - 1))).astype(np.int64)


def batched(arrays: Iterator[npt.NDArray[Any]], num_records: int) -> Iterator[npt.NDArray[Any]]:
    """The same records in arrays of about ``num_records``, cut or put together."""
    held: list[npt.NDArray[Any]] = []
    count = 0
    for array in arrays:
        for first in range(0, len(array), num_records):
            held.append(array[first : first + num_records])
            count += len(held[-1])
            if count >= num_records:
                yield np.concatenate(held)
                held, count = [], 0
    if held:
        yield np.concatenate(held)


Chunks = Callable[[], Iterator[npt.NDArray[Any]]]
"""Gives the same records each time it is called, some at a time."""
