"""Reading a corpus for training: tokens by position, opened in O(1), every block verified at its first read.

"First" is since the opening or the last `Corpus.verify_again`; in between, `Corpus.check_unchanged` looks at size and
time of the files.

A corpus is PREFIX.bin (raw tokens), PREFIX.idx (Megatron's MMIDIDX index, not needed here), PREFIX.json (sidecar) and
PREFIX.crc (CRC-32 of each block of .bin: 4 KiB, or 64 KiB in corpora of earlier versions, as the sidecar says).
"""

import os
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.corpus.sidecar import Sidecar, corpus_path
from data_tools.errors import DataError
from data_tools.io.checksums import CRC_DTYPE, num_blocks


class Corpus:
    """An open corpus.

    Reads go through ``pread``, not a memory map: a file truncated or a disk failing under a running job raises an
    error that names the file, instead of killing the process. Several threads and forked processes may share an open
    corpus. Pickling sends the prefix and the fingerprint; unpickling opens the files again and refuses a corpus that
    was rebuilt in between.

    Attributes:
        prefix: path without suffix.
        sidecar: the content of PREFIX.json.
        num_tokens: tokens in the corpus.
        num_documents: documents in the corpus.
        end_of_document: token id that ends each document.
        fingerprint: identity of the content.
    """

    def __init__(self, prefix: str | Path, sidecar: Sidecar, *, verify_blocks: bool) -> None:
        """Use `Corpus.open`."""
        self.prefix = Path(prefix)
        self.sidecar = sidecar
        self.num_tokens = sidecar.num_tokens
        self.num_documents = sidecar.num_documents
        self.end_of_document = sidecar.end_of_document
        self.fingerprint = sidecar.fingerprint
        self._verify_blocks = verify_blocks
        self._dtype = np.dtype(sidecar.dtype).newbyteorder("<")
        self._bin_bytes = sidecar.bin.size_bytes
        self._block_bytes = sidecar.crc_block_bytes
        self._bin = _ReadOnlyFile(corpus_path(prefix, "bin"), sidecar.bin.size_bytes, prefix)
        self._crc = _ReadOnlyFile(corpus_path(prefix, "crc"), sidecar.crc.size_bytes, prefix)
        self.verify_again()

    @classmethod
    def open(cls, prefix: str | Path, *, verify_blocks: bool = True) -> "Corpus":
        """Opens PREFIX.bin and PREFIX.crc after comparing their sizes with the sidecar; reads no token.

        Args:
            prefix: path of the corpus without suffix.
            verify_blocks: compare the CRC of every block when it is read for the first time.
        Raises:
            DataError: no valid sidecar, a file is missing, or its size differs from the sidecar's.
        """
        return cls(prefix, Sidecar.read(prefix), verify_blocks=verify_blocks)

    def tokens(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens ``start`` to ``start + count - 1``.

        Returns:
            [count] int64 token ids, a fresh array.
        Raises:
            DataError: the range leaves the corpus, a block fails its checksum, or a file cannot be read.
        """
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise DataError(
                f"{self._bin.path}: tokens [{start}, {start + count}) are out of range, the corpus has "
                f"{self.num_tokens} tokens"
            )
        first = start * self._dtype.itemsize
        last = first + count * self._dtype.itemsize
        content = self._read_verified(first, last) if self._verify_blocks else self._bin.read(first, last)
        return np.frombuffer(content, dtype=self._dtype).astype(np.int64)

    def verify_again(self) -> None:
        """Forgets which blocks were verified: the next read of each compares its CRC anew.

        For every pass through the corpus, because a disk or a hand may damage what was read before. Reads in other
        threads go on meanwhile.
        """
        self._verified = _Marks()

    def check_unchanged(self) -> None:
        """Looks again at size and time of the open files; reads nothing.

        A file that another has replaced by its name is no change: what was opened is still what is read.

        Raises:
            DataError: a file was written to since it was opened, naming it; blocks that had been verified may have
                changed since.
        """
        touched = [file.check_unchanged() for file in (self._bin, self._crc)]
        if any(touched):
            self.verify_again()

    def _read_verified(self, first: int, last: int) -> bytes | memoryview:
        size = self._block_bytes
        begin, end = first // size, num_blocks(last, size)
        verified = self._verified
        unverified = [block for block in range(begin, end) if block not in verified]
        if not unverified:
            return self._bin.read(first, last)
        origin = begin * size
        blocks = memoryview(self._bin.read(origin, min(end * size, self._bin_bytes)))
        expected = np.frombuffer(self._crc.read(begin * 4, end * 4), dtype=CRC_DTYPE)
        for block in unverified:
            offset = block * size - origin
            actual = zlib.crc32(blocks[offset : offset + size])
            if actual != expected[block - begin]:
                stop = min((block + 1) * size, self._bin_bytes)
                raise DataError(
                    f"{self._bin.path}: block {block} (bytes {block * size} to {stop - 1}) has CRC-32 "
                    f"{actual:08x}, {self._crc.path} says {expected[block - begin]:08x}; the file is damaged: restore "
                    f"it or make the corpus again (qwen-data verify {self.prefix} checks all of it)"
                )
            verified.add(block)
        return blocks[first - origin : last - origin]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.prefix, self._verify_blocks, self.fingerprint)


def _reopen(prefix: Path, verify_blocks: bool, fingerprint: str) -> Corpus:
    corpus = Corpus.open(prefix, verify_blocks=verify_blocks)
    if corpus.fingerprint != fingerprint:
        raise DataError(
            f"{prefix}: the corpus was rebuilt while it was in use: fingerprint {corpus.fingerprint}, was "
            f"{fingerprint}; start again with one or the other"
        )
    return corpus


class _Marks:
    """A set of block numbers: one bit each, in pages that are made when a block of theirs is marked.

    At 4 KiB a block 32 MB for every terabyte of tokens, once all of it was read; nothing at the opening. Two threads
    that mark at once may lose a mark, and the block is verified once more.
    """

    _PAGE_BYTES = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def __contains__(self, block: int) -> bool:
        number, place = divmod(block >> 3, self._PAGE_BYTES)
        page = self._pages.get(number)
        return page is not None and bool(page[place] >> (block & 7) & 1)

    def add(self, block: int) -> None:
        number, place = divmod(block >> 3, self._PAGE_BYTES)
        page = self._pages.get(number)
        if page is None:
            page = self._pages.setdefault(number, bytearray(self._PAGE_BYTES))
        page[place] |= 1 << (block & 7)


def _utc(status: os.stat_result) -> str:
    return datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="milliseconds")


class _ReadOnlyFile:
    """A file of known size, read by position."""

    def __init__(self, path: Path, expected_bytes: int, prefix: str | Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: missing, but {prefix}.json is there; restore the file or make the corpus again"
            ) from error
        except OSError as error:
            raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
        self._opened = os.fstat(self._descriptor)
        self._change_ns = self._opened.st_ctime_ns
        actual_bytes = self._opened.st_size
        if actual_bytes != expected_bytes:
            raise DataError(
                f"{path}: {actual_bytes} bytes, but {prefix}.json says {expected_bytes}; the file is truncated or not "
                "the one the sidecar was written for: restore it or make the corpus again"
            )

    def check_unchanged(self) -> bool:
        """Whether anything but size and time is different, such as the owner; then the time cannot be relied upon.

        Raises:
            DataError: size or time are different.
        """
        try:
            now = os.fstat(self._descriptor)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be looked at: {error.strerror}") from error
        if (now.st_size, now.st_mtime_ns) != (self._opened.st_size, self._opened.st_mtime_ns):
            raise DataError(
                f"{self.path}: was changed while it was open: {now.st_size} bytes written at {_utc(now)}, at its "
                f"opening {self._opened.st_size} bytes of {_utc(self._opened)}; restore it and go on from the last "
                "checkpoint: what was read since may be wrong"
            )
        before, self._change_ns = self._change_ns, now.st_ctime_ns
        return before != now.st_ctime_ns

    def read(self, first: int, last: int) -> bytes:
        """Bytes [first, last)."""
        pieces = []
        position = first
        while position < last:
            try:
                piece = os.pread(self._descriptor, last - position, position)
            except OSError as error:
                raise DataError(f"{self.path}: reading at byte {position} failed: {error.strerror}") from error
            if not piece:
                raise DataError(f"{self.path}: ends at byte {position}, it was truncated while it was open")
            pieces.append(piece)
            position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __del__(self) -> None:
        # Absent if opening failed.
        if "_descriptor" in self.__dict__:
            os.close(self._descriptor)
