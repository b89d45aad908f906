"""Bytes of plain, gzip, zstd, bzip2 and xz files in bounded pieces; a broken stream gives what is before the break."""

import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, Protocol

from data_tools.errors import DataError

PIECE_BYTES = 1024 * 1024
# zstd's best ratio is about 32,000: this much input gives at most some 64 MiB at once.
_ZSTD_INPUT_BYTES = 2048
# What a zstd frame (`zstd --long=31`) and an xz stream may declare that they look back; so much is held while one is
# read. xz counts some 64 KiB of its own with it.
_ZSTD_WINDOW_BYTES = 2**31
_XZ_MEMORY_BYTES = 2**31 + 2**20

Compression = Literal["none", "gzip", "zstd", "bzip2", "xz"]

_SUFFIXES: dict[str, Compression] = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
}
_MAGIC: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    # With the mark of the first block: three letters could begin a text.
    **{b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)},
}
_MAGIC_BYTES = max(map(len, _MAGIC))
# Compressed files and archives that are refused by name, or every line of them would be a bad record.
_NOT_READ = (".7z", ".br", ".lz", ".lz4", ".lzma", ".lzo", ".rar", ".snappy", ".sz", ".tar", ".tgz", ".zip")

TRUNCATED, CORRUPT = "truncated_stream", "corrupt_stream"
# Reasons of rejections that stand for the rest of a file and not for one record.
BROKEN = (TRUNCATED, CORRUPT)


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
            DataError: the file is missing, not a regular file, cannot be opened, or is of a kind that is not read.
        """
        self.path = path
        refuse_unread(path)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a regular file; inputs are files on disk")
            self.size_bytes = status.st_size
            self._stream = path.open("rb", buffering=0)
            magic = self._stream.read(_MAGIC_BYTES)
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
    magic = stream.read(_MAGIC_BYTES)
    stream.seek(0)
    return _compression(PurePath(path), magic)


def decompressed_pieces(stream: BinaryIO, path: str) -> Iterator[bytes]:
    """The content of a seekable stream, decompressed, in pieces of at most 1 MiB.

    Raises:
        BrokenStreamError: the compressed stream is cut short or damaged.
    """
    yield from decompressed(stream, compression_of(stream, path))


def decompressed(stream: BinaryIO, compression: Compression) -> Iterator[bytes]:
    """The content of a stream that is compressed in this way, in pieces of at most 1 MiB.

    Raises:
        BrokenStreamError: the compressed stream is cut short or damaged.
    """
    return _DECOMPRESSORS[compression](stream)


def _compression(path: PurePath, magic: bytes) -> Compression:
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    return next((kind for start, kind in _MAGIC.items() if magic.startswith(start)), "none")


def name_without_compression(path: PurePath) -> PurePath:
    """``path`` without the suffix of a compressed file, if it has one."""
    return path.with_suffix("") if path.suffix in (*_SUFFIXES, *_NOT_READ) else path


def refuse_unread(path: PurePath) -> None:
    """Refuses compressed files and archives of a kind that is not read.

    Raises:
        DataError: by its name, ``path`` is one.
    """
    inner = path.with_suffix("") if path.suffix in _SUFFIXES else path
    if inner.suffix in _NOT_READ:
        raise DataError(
            f"{path}: {inner.suffix} files are not read; unpack it, or compress it with zstd, gzip, bzip2 or xz"
        )


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
                raise BrokenStreamError(CORRUPT, f"gzip: {error}") from error
            if piece:
                yield piece
            data = member.unconsumed_tail
            if not data and not piece and not member.eof:
                data = stream.read(PIECE_BYTES)
                if not data:
                    raise BrokenStreamError(TRUNCATED, "the gzip stream ends in the middle of a member")
        # Further members may follow, and zero bytes as padding.
        data = member.unused_data.lstrip(b"\0")
        while not data:
            more = stream.read(PIECE_BYTES)
            if not more:
                return
            data = more.lstrip(b"\0")


def _unzstd(stream: BinaryIO) -> Iterator[bytes]:
    return _joined(_zstd_outputs(stream))


def _joined(outputs: Iterable[bytes]) -> Iterator[bytes]:
    """``outputs``, of any size, in pieces of 1 MiB: each piece costs who works on them as much as a large one."""
    held: list[bytes] = []
    num_bytes = 0
    try:
        for output in outputs:
            held.append(output)
            num_bytes += len(output)
            if num_bytes >= PIECE_BYTES:
                content = b"".join(held)
                whole = num_bytes - num_bytes % PIECE_BYTES
                for start in range(0, whole, PIECE_BYTES):
                    yield content[start : start + PIECE_BYTES]
                held, num_bytes = [content[whole:]], num_bytes - whole
    except BrokenStreamError:
        yield b"".join(held)
        raise
    yield b"".join(held)


def _zstd_outputs(stream: BinaryIO) -> Iterator[bytes]:
    import zstandard

    data = memoryview(stream.read(PIECE_BYTES))
    if not data:
        raise BrokenStreamError(TRUNCATED, "the zstd file is empty")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    while data:
        frame = decompressor.decompressobj()
        while not frame.eof:
            data = data or memoryview(stream.read(PIECE_BYTES))
            if not data:
                raise BrokenStreamError(TRUNCATED, "the zstd stream ends in the middle of a frame")
            try:
                output = frame.decompress(data[:_ZSTD_INPUT_BYTES])
            except zstandard.ZstdError as error:
                raise BrokenStreamError(CORRUPT, f"zstd: {error}") from error
            data = data[_ZSTD_INPUT_BYTES:]
            yield output
        data = memoryview(frame.unused_data + bytes(data)) or memoryview(stream.read(PIECE_BYTES))


class _Decompressor(Protocol):
    """`bz2.BZ2Decompressor` and `lzma.LZMADecompressor`: one stream of those that a file may be made of."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _bunzip2(stream: BinaryIO) -> Iterator[bytes]:
    import bz2

    return _streams(stream, "bzip2", bz2.BZ2Decompressor, OSError)


def _unxz(stream: BinaryIO) -> Iterator[bytes]:
    import lzma

    def begin() -> _Decompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    return _streams(stream, "xz", begin, lzma.LZMAError)


def _streams(
    stream: BinaryIO, name: str, begin: Callable[[], _Decompressor], damage: type[Exception]
) -> Iterator[bytes]:
    data = stream.read(PIECE_BYTES)
    if not data:
        raise BrokenStreamError(TRUNCATED, f"the {name} file is empty")
    while data:
        decompressor = begin()
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = stream.read(PIECE_BYTES)
                if not data:
                    raise BrokenStreamError(TRUNCATED, f"the {name} stream ends too early")
            try:
                piece = decompressor.decompress(data, PIECE_BYTES)
            except damage as error:
                raise BrokenStreamError(CORRUPT, f"{name}: {error}") from error
            data = b""
            if piece:
                yield piece
        # Further streams may follow, and zero bytes as padding.
        data = decompressor.unused_data.lstrip(b"\0")
        while not data and (more := stream.read(PIECE_BYTES)):
            data = more.lstrip(b"\0")


_DECOMPRESSORS: dict[Compression, Callable[[BinaryIO], Iterator[bytes]]] = {
    "none": _plain,
    "gzip": _gunzip,
    "zstd": _unzstd,
    "bzip2": _bunzip2,
    "xz": _unxz,
}
