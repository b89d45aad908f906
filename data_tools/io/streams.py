"""Bytes of plain, gzip and zstd files in bounded pieces; a broken stream gives everything before the break."""

import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, Literal

from data_tools.errors import DataError

PIECE_BYTES = 1024 * 1024
# zstd's best ratio is about 32,000: this much input gives at most some 64 MiB at once.
_ZSTD_INPUT_BYTES = 2048
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Compression = Literal["none", "gzip", "zstd"]


class BrokenStreamError(Exception):
    """The compressed stream ends or is damaged here; what came before it is good."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class InputStream:
    """An input file being read once, front to back.

    Attributes:
        path: the file.
        size_bytes: its size on disk.
        compression: by file name, else by the first bytes.
    """

    def __init__(self, path: Path) -> None:
        """Opens ``path``.

        Raises:
            DataError: the file is missing, not a regular file, or cannot be opened.
        """
        self.path = path
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a regular file; inputs are files on disk")
            self.size_bytes = status.st_size
            self._stream = path.open("rb", buffering=0)
            magic = self._stream.read(4)
            self._stream.seek(0)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        self.compression: Compression = _compression(path, magic)

    @property
    def position(self) -> int:
        """Bytes of the file (compressed, if it is) read so far."""
        return self._stream.tell()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def pieces(self) -> Iterator[bytes]:
        """The decompressed content in pieces of at most 1 MiB.

        Raises:
            BrokenStreamError: the compressed stream is cut short or damaged.
            DataError: the disk fails.
        """
        try:
            yield from _DECOMPRESSORS[self.compression](self._stream)
        except OSError as error:
            raise DataError(f"{self.path}: reading failed: {error.strerror}") from error


def compression_of(stream: BinaryIO, path: str) -> Compression:
    """How a seekable stream at its beginning is compressed: by file name, else by the first bytes."""
    magic = stream.read(4)
    stream.seek(0)
    return _compression(PurePath(path), magic)


def decompressed_pieces(stream: BinaryIO, path: str) -> Iterator[bytes]:
    """The content of a seekable stream, decompressed, in pieces of at most 1 MiB.

    Raises:
        BrokenStreamError: the compressed stream is cut short or damaged.
    """
    yield from _DECOMPRESSORS[compression_of(stream, path)](stream)


def _compression(path: PurePath, magic: bytes) -> Compression:
    if path.suffix in (".gz", ".gzip") or magic.startswith(_GZIP_MAGIC):
        return "gzip"
    if path.suffix in (".zst", ".zstd") or magic == _ZSTD_MAGIC:
        return "zstd"
    return "none"


def _plain(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(PIECE_BYTES):
        yield piece


def _gunzip(stream: BinaryIO) -> Iterator[bytes]:
    data = stream.read(PIECE_BYTES)
    while True:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            try:
                piece = member.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise BrokenStreamError("corrupt_stream", f"gzip: {error}") from error
            if piece:
                yield piece
            data = member.unconsumed_tail
            if not data and not piece and not member.eof:
                data = stream.read(PIECE_BYTES)
                if not data:
                    raise BrokenStreamError("truncated_stream", "the gzip stream ends in the middle of a member")
        # Further members may follow, and zero bytes as padding.
        data = member.unused_data.lstrip(b"\0")
        while not data:
            more = stream.read(PIECE_BYTES)
            if not more:
                return
            data = more.lstrip(b"\0")


def _unzstd(stream: BinaryIO) -> Iterator[bytes]:
    import zstandard

    data = memoryview(stream.read(PIECE_BYTES))
    if not data:
        raise BrokenStreamError("truncated_stream", "the zstd file is empty")
    decompressor = zstandard.ZstdDecompressor()
    while data:
        frame = decompressor.decompressobj()
        while not frame.eof:
            data = data or memoryview(stream.read(PIECE_BYTES))
            if not data:
                raise BrokenStreamError("truncated_stream", "the zstd stream ends in the middle of a frame")
            try:
                output = frame.decompress(data[:_ZSTD_INPUT_BYTES])
            except zstandard.ZstdError as error:
                raise BrokenStreamError("corrupt_stream", f"zstd: {error}") from error
            data = data[_ZSTD_INPUT_BYTES:]
            for start in range(0, len(output), PIECE_BYTES):
                yield output[start : start + PIECE_BYTES]
        data = memoryview(frame.unused_data + bytes(data)) or memoryview(stream.read(PIECE_BYTES))


_DECOMPRESSORS: dict[Compression, Callable[[BinaryIO], Iterator[bytes]]] = {
    "none": _plain,
    "gzip": _gunzip,
    "zstd": _unzstd,
}
