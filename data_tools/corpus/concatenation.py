"""The .bin of several corpora as one: copied, brought to the disk and compared with the checksums at the same time.

One thread copies, inside the file system where that can; one brings what was copied to the disk; others read it back
segment by segment, while it is in memory, and compare every block of every input with the .crc of its corpus.
"""

import errno
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_tools.corpus.sidecar import Sidecar, corpus_path
from data_tools.errors import DataError
from data_tools.io.background_sync import BackgroundSync
from data_tools.io.checksums import (
    CRC_DTYPE,
    READ_BYTES,
    SEGMENT_BYTES,
    BlockCrcs,
    StreamChecksums,
    num_blocks,
    read_pieces,
    sha256_of_file,
)
from data_tools.io.progress import Progress, progress_bar
from data_tools.io.system_errors import naming
from data_tools.io.threads import map_in_threads

_COPY_BYTES = 16 * 1024 * 1024
# What the kernel answers when it cannot copy between these two files; then sendfile, then our own loop.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


class Source(NamedTuple):
    """A corpus to be merged; none of its files is open."""

    prefix: Path
    sidecar: Sidecar


class _Part(NamedTuple):
    """Where a corpus is in the merged file: bytes [start, stop)."""

    source: Source
    start: int
    stop: int


def concatenate(sources: Sequence[Source], target: Path, workers: int) -> StreamChecksums:
    """Writes the tokens of ``sources``, one after the other, as the new file ``target``, which is then on the disk.

    Args:
        sources: the corpora.
        target: the file.
        workers: segments compared at once.
    Returns:
        the checksums of ``target``.
    Raises:
        DataError: a corpus is damaged, or became shorter meanwhile.
        OSError: the disk is full or fails.
    """
    for source in sources:
        crcs = corpus_path(source.prefix, "crc")
        if sha256_of_file(crcs) != source.sidecar.crc.sha256:
            raise DataError(f"{crcs}: is damaged; run: qwen-data verify {source.prefix}")
    ends = np.cumsum([source.sidecar.bin.size_bytes for source in sources]).tolist()
    parts = [_Part(*one) for one in zip(sources, [0, *ends[:-1]], ends, strict=True)]
    total = ends[-1]
    checksums: StreamChecksums | None = None
    with progress_bar("copying", total) as progress, naming(target), target.open("wb", buffering=0) as stream:
        # As far ahead as keeps all workers busy, and no further: what they read should still be in memory.
        copy = _Copy(stream, progress, (workers + 1) * SEGMENT_BYTES)

        def compared(start: int) -> StreamChecksums:
            return _compared(parts, target, start, min(start + SEGMENT_BYTES, total), copy)

        with ThreadPoolExecutor(1) as pool:
            copying = pool.submit(copy.run, sources)
            try:
                for segment in map_in_threads(compared, range(0, total, SEGMENT_BYTES), workers):
                    if checksums is None:
                        checksums = segment
                    else:
                        checksums.append(segment)
            except _CopyStoppedError:
                pass  # The copy says why.
            except BaseException:
                copy.stop()
                raise
            copying.result()
    return checksums or StreamChecksums()


class _CopyStoppedError(Exception):
    """The copy ends early: it failed, or somebody who needs it did."""


class _Copy:
    """A copy under way, for whose progress others wait.

    Args:
        stream: the new file, unbuffered.
        progress: told the bytes copied.
        ahead_bytes: how far the copy may be ahead of what was `taken`.
    """

    def __init__(self, stream: BinaryIO, progress: Progress, ahead_bytes: int) -> None:
        self._stream = stream
        self._progress = progress
        self._ahead_bytes = ahead_bytes
        self._sync = BackgroundSync(stream.fileno())
        self._changed = threading.Condition()
        self._copied = 0
        self._taken = 0
        self._is_stopped = False

    def run(self, sources: Sequence[Source]) -> None:
        """Copies the tokens of ``sources`` and waits for the disk."""
        try:
            for source in sources:
                path = corpus_path(source.prefix, "bin")
                with path.open("rb", buffering=0) as stream:
                    if os.fstat(stream.fileno()).st_size != source.sidecar.bin.size_bytes:
                        raise DataError(f"{path}: was changed meanwhile; run: qwen-data verify {source.prefix}")
                    copy_file(stream, self._stream, self)
            self._sync.wait()
            os.fsync(self._stream.fileno())
        finally:
            self._sync.end()
            self.stop()

    def advance(self, amount: int) -> None:
        """``amount`` bytes more were copied."""
        self._progress.advance(amount)
        self._sync.wrote(amount)
        with self._changed:
            self._copied += amount
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_stopped or self._copied - self._taken <= self._ahead_bytes)
            if self._is_stopped:
                raise _CopyStoppedError

    def stop(self) -> None:
        """Nobody needs more of it; whoever waits need not any longer."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def wait_for(self, position: int) -> None:
        """Returns when the bytes up to ``position`` were copied."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._copied >= position)
            if self._copied < position:
                raise _CopyStoppedError

    def took(self, amount: int) -> None:
        """``amount`` bytes more are no longer needed in memory."""
        with self._changed:
            self._taken += amount
            self._changed.notify_all()


def _compared(parts: Sequence[_Part], target: Path, start: int, stop: int, copy: _Copy) -> StreamChecksums:
    """Checksums of a segment of the merged file; the blocks of the inputs that end in it are compared on the way."""
    checksums = StreamChecksums()
    position = start
    try:
        copy.wait_for(start)
        comparisons = [
            _Comparison(part, target, start, stop) for part in parts if part.start < stop and part.stop > start
        ]
        pieces = read_pieces(target, start, stop)
        while position < stop:
            copy.wait_for(min(position + READ_BYTES, stop))
            piece = memoryview(next(pieces))
            checksums.update(piece)
            for comparison in comparisons:
                comparison.update(piece, position)
            copy.took(len(piece))
            position += len(piece)
    finally:
        # Whatever happens here, the other segments go on.
        copy.took(stop - position)
    for comparison in comparisons:
        comparison.end()
    return checksums


class _Comparison:
    """Of an input's blocks with its .crc: of those blocks that end in the segment [start, stop) of the merged file."""

    def __init__(self, part: _Part, target: Path, start: int, stop: int) -> None:
        self._part = part
        self._stop = min(stop, part.stop)
        block_bytes = part.source.sidecar.crc_block_bytes
        self._crcs = BlockCrcs(block_bytes)
        self._first_block = max(start - part.start, 0) // block_bytes
        # The last block of the input need not be a whole one.
        ended = num_blocks(self._stop - part.start, block_bytes)
        end_block = ended if self._stop == part.stop else (self._stop - part.start) // block_bytes
        self._num_blocks = end_block - self._first_block
        # The first block may have begun in the segment before, which was copied before this one.
        block_start = part.start + self._first_block * block_bytes
        self._start = max(start, part.start)
        for piece in read_pieces(target, block_start, self._start):
            self._crcs.update(piece)

    def update(self, piece: memoryview, position: int) -> None:
        """Takes what it needs of ``piece``, which begins at byte ``position`` of the merged file."""
        first, last = max(self._start - position, 0), min(self._stop - position, len(piece))
        if first < last:
            self._crcs.update(piece[first:last])

    def end(self) -> None:
        """Raises DataError if a block is not what the .crc says."""
        prefix = self._part.source.prefix
        path = corpus_path(prefix, "crc")
        expected = np.fromfile(path, dtype=CRC_DTYPE, count=self._num_blocks, offset=4 * self._first_block)
        found = np.frombuffer(self._crcs.crc_bytes(), dtype=CRC_DTYPE)[: self._num_blocks]
        if not np.array_equal(found, expected):
            raise DataError(f"{prefix}.bin: is damaged; run: qwen-data verify {prefix}")


def copy_file(source: BinaryIO, target: BinaryIO, progress: Progress) -> None:
    """Appends all of ``source`` to ``target``: shared blocks where the file system can, else a copy in the kernel.

    Args:
        source: unbuffered, at its beginning.
        target: unbuffered, at its end.
        progress: told the bytes copied.
    """
    remaining = os.fstat(source.fileno()).st_size
    ways = [_copy_range, _send, _read_and_write]
    while remaining:
        try:
            copied = ways[0](source, target, min(remaining, _COPY_BYTES))
        except OSError as error:
            if error.errno not in _CANNOT or len(ways) == 1:
                raise
            ways.pop(0)
            continue
        if copied == 0:
            if len(ways) > 1:
                ways.pop(0)  # Some file systems answer 0 where they cannot copy.
                continue
            raise DataError(f"{source.name}: {remaining} bytes are missing; it was truncated while it was copied")
        remaining -= copied
        progress.advance(copied)


def _copy_range(source: BinaryIO, target: BinaryIO, count: int) -> int:
    return os.copy_file_range(source.fileno(), target.fileno(), count)


def _send(source: BinaryIO, target: BinaryIO, count: int) -> int:
    return os.sendfile(target.fileno(), source.fileno(), None, count)


def _read_and_write(source: BinaryIO, target: BinaryIO, count: int) -> int:
    remaining = memoryview(source.read(min(count, 1024 * 1024)))
    copied = len(remaining)
    while remaining:
        remaining = remaining[target.write(remaining) :]
    return copied
