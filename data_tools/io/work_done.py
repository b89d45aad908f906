"""How much of a task is done, told by what reads its inputs to whoever shows it, a few times a second.

Readers and operations count where they read or write a megabyte or so; where nobody is told, they count nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import BinaryIO, cast

_TELL_SECONDS = 0.25

Told = Callable[[float], None]
"""Is told the share of a task that is done, 0 to about 1."""


class WorkDone:
    """The share of a task that is done; counts what belongs to the task's size and ignores everything else."""

    def __init__(self, told: Told, *, documents: int | None, input_bytes: int, num_bytes: int) -> None:
        """Begins at nothing.

        Args:
            told: at most four times a second.
            documents: that the task reads; None: its size is bytes.
            input_bytes: of the files that it reads, as they are stored.
            num_bytes: its size, whatever bytes these are.
        """
        self._told = told
        self.counts_documents = documents is not None
        self._documents, self._input_bytes, self._num_bytes = documents or 0, input_bytes, num_bytes
        self._share = 0.0
        self._next = time.monotonic() + _TELL_SECONDS

    def add_documents(self, count: int) -> None:
        """``count`` more documents were read."""
        if self.counts_documents:
            self._add(count, self._documents)

    def add_input(self, num_bytes: int) -> None:
        """So many more bytes of input files were read, as they are stored."""
        if not self.counts_documents:
            self._add(num_bytes, self._input_bytes)

    def add_bytes(self, num_bytes: int) -> None:
        """So many more of the bytes that are the task's size."""
        if not self.counts_documents:
            self._add(num_bytes, self._num_bytes)

    def _add(self, amount: int, whole: int) -> None:
        self._share += amount / max(1, whole)
        if (now := time.monotonic()) >= self._next:
            self._next = now + _TELL_SECONDS
            self._told(self._share)


_CURRENT: ContextVar[WorkDone | None] = ContextVar("work_done", default=None)


@contextmanager
def counting(work: WorkDone | None) -> Iterator[None]:
    """What this thread does in the block is counted by ``work``; None: not at all."""
    token = _CURRENT.set(work)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def count_documents(count: int) -> None:
    """The task of this thread has read ``count`` more documents."""
    if (work := _CURRENT.get()) is not None:
        work.add_documents(count)


def count_bytes(num_bytes: int) -> None:
    """The task of this thread has done so many more of the bytes that are its size."""
    if (work := _CURRENT.get()) is not None:
        work.add_bytes(num_bytes)


def count_input(num_bytes: int) -> None:
    """The task of this thread has read so many more bytes of its input files."""
    if (work := _CURRENT.get()) is not None:
        work.add_input(num_bytes)


def counted(stream: BinaryIO) -> BinaryIO:
    """``stream`` as an input file of this thread's task: what is read of it, by whatever thread, is counted."""
    work = _CURRENT.get()
    return stream if work is None or work.counts_documents else cast(BinaryIO, _CountedStream(stream, work))


class _CountedStream:
    def __init__(self, stream: BinaryIO, work: WorkDone) -> None:
        self._stream, self._work = stream, work

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._work.add_input(len(piece))
        return piece

    def seek(self, position: int, whence: int = 0) -> int:
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "_CountedStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
