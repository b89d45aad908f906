"""The two checksums of a token file: SHA-256 of the whole, CRC-32 of every block.

The SHA-256 is the identity of the content and what ``qwen-data verify`` compares. Of a file of more than one segment
(32 MiB) it is the SHA-256 of the SHA-256s of its segments, 32 bytes each, which many processes can take at once. The
CRC-32 (zlib's polynomial) of each block, kept in the .crc file, lets training verify what it reads, and read little
more than that: a block is a page, of which a sample of 2048 tokens fills two.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_tools import _native
from data_tools.io.system_errors import naming

BLOCK_BYTES = 4096
# Of corpora whose sidecar does not say: those of earlier versions.
UNSTATED_BLOCK_BYTES = 65536
SEGMENT_BYTES = 8192 * BLOCK_BYTES
CRC_DTYPE = np.dtype("<u4")
READ_BYTES = 2048 * BLOCK_BYTES
# From this size on the SHA-256 of a piece is taken in a thread beside its CRCs.
_THREAD_BYTES = 256 * BLOCK_BYTES


def num_blocks(size_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Blocks of a file of ``size_bytes`` bytes; the last one may be short."""
    return -(-size_bytes // block_bytes)


class BlockCrcs:
    """CRCs of the blocks of a byte stream given in pieces of any size.

    Args:
        block_bytes: Bytes of a block.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self.block_bytes = block_bytes
        self._crcs: list[bytes] = []
        self._open_crc = 0
        self._open_bytes = 0

    def update(self, piece: memoryview | bytes) -> None:
        """Takes the next bytes of the stream."""
        if len(piece):
            crcs, self._open_crc, self._open_bytes = _native.block_crcs(
                np.frombuffer(piece, dtype=np.uint8), self.block_bytes, self._open_crc, self._open_bytes
            )
            self._crcs.append(crcs.astype(CRC_DTYPE, copy=False).tobytes())

    def crc_bytes(self) -> bytes:
        """Content of the .crc file for everything so far: one little-endian uint32 for each block."""
        tail = [self._open_crc] if self._open_bytes else []
        return b"".join(self._crcs) + np.array(tail, dtype=CRC_DTYPE).tobytes()


def root_of_segments(digests: Sequence[bytes]) -> str:
    """Hexadecimal SHA-256 of a file from the SHA-256 of each of its segments; that of the only one, if there is one."""
    return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()


class StreamChecksums(BlockCrcs):
    """SHA-256 and block CRCs of a byte stream given in pieces of any size.

    Args:
        block_bytes: of each CRC.
        segment_bytes: of each SHA-256 below that of the whole; None: there is one of all bytes.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES, segment_bytes: int | None = SEGMENT_BYTES) -> None:
        super().__init__(block_bytes)
        self._segment_bytes = segment_bytes
        self._digests: list[bytes] = []  # of segments after which bytes came
        self._sha256 = hashlib.sha256()
        self._open_segment_bytes = 0
        self._thread: ThreadPoolExecutor | None = None  # Started by the first large piece.
        self.size_bytes = 0

    def update(self, piece: memoryview | bytes) -> None:
        """Takes the next bytes of the stream."""
        view = memoryview(piece).cast("B")
        self.size_bytes += len(view)
        if len(view) < _THREAD_BYTES:
            self._hash(view)
            super().update(view)
            return
        self._thread = self._thread or ThreadPoolExecutor(1)
        hashed = self._thread.submit(self._hash, view)
        super().update(view)
        hashed.result()

    def _hash(self, view: memoryview) -> None:
        while self._segment_bytes is not None and self._open_segment_bytes + len(view) > self._segment_bytes:
            room = self._segment_bytes - self._open_segment_bytes
            self._sha256.update(view[:room])
            self._digests.append(self._sha256.digest())
            self._sha256 = hashlib.sha256()
            view, self._open_segment_bytes = view[room:], 0
        self._sha256.update(view)
        self._open_segment_bytes += len(view)

    def append(self, following: "StreamChecksums") -> None:
        """Takes the bytes that ``following`` took.

        Args:
            following: the same checksums of the bytes behind these, which end with a block and with a segment. It is
                not to be used any more.
        """
        assert (self.block_bytes, self._segment_bytes) == (following.block_bytes, following._segment_bytes)
        assert self._open_bytes == 0
        assert self._open_segment_bytes == self._segment_bytes
        self._crcs += following._crcs
        self._open_crc, self._open_bytes = following._open_crc, following._open_bytes
        self._digests += [self._sha256.digest(), *following._digests]
        self._sha256, self._open_segment_bytes = following._sha256, following._open_segment_bytes
        self.size_bytes += following.size_bytes

    @property
    def segment_bytes(self) -> int | None:
        """Bytes of the segments that `sha256` is made of; None if it is that of the bytes themselves."""
        return self._segment_bytes if self._digests else None

    def segment_digests(self) -> list[bytes]:
        """SHA-256 of each segment so far."""
        return [*self._digests, self._sha256.digest()]

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of everything so far, as `root_of_segments` has it."""
        return root_of_segments(self.segment_digests())


def read_pieces(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content of ``path`` from byte ``start`` to ``stop`` or its end, in pieces of 8 MiB except for the last."""
    with naming(path), path.open("rb", buffering=0) as stream:
        stream.seek(start)
        position = start
        while piece := stream.read(_piece_bytes(position, stop)):
            # A raw read may come back short (network file systems); block positions need whole pieces.
            wanted = _piece_bytes(position, stop)
            while len(piece) < wanted and (more := stream.read(wanted - len(piece))):
                piece += more
            position += len(piece)
            yield piece


def _piece_bytes(position: int, stop: int | None) -> int:
    return READ_BYTES if stop is None else min(READ_BYTES, stop - position)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()
