"""The records of a WARC file, one after the other; a file that is cut short or no WARC is noticed where that shows."""

import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from data_tools.io.streams import CORRUPT, PIECE_BYTES, TRUNCATED, BrokenStreamError

_VERSION = b"WARC/"
# Of one line of a header, and of all of them: no writer comes near, and neither does a file that is something else.
_MAX_LINE_BYTES = 64 * 1024
_MAX_HEADER_LINES = 1000


class WarcRecord(NamedTuple):
    """One record.

    Attributes:
        place: byte of the decompressed file at which it begins.
        headers: by name in lower case; of a repeated one the last.
        block: what the record holds, up to the limit; empty if it is not wanted.
        num_bytes: of the block as it is in the file.
    """

    place: int
    headers: Mapping[str, str]
    block: bytes
    num_bytes: int


def read_warc_records(pieces: Iterator[bytes], wanted: str, max_block_bytes: int) -> Iterator[WarcRecord]:
    """Every record of a file.

    Args:
        pieces: the decompressed content.
        wanted: WARC-Type of the records whose blocks are read; those of others are passed over.
        max_block_bytes: what is held of a longer block.
    Raises:
        BrokenStreamError: the file ends in the middle of a record, or something else stands where one should begin.
    Source: ISO 28500:2017, section 4.
    """
    stream = _Counted(pieces)
    while (first := _first_line(stream)) is not None:
        place = stream.position - len(first)
        if not first.startswith(_VERSION):
            raise BrokenStreamError(CORRUPT, f"no WARC record at byte {place} of the decompressed file")
        headers = _headers(stream)
        num_bytes = _content_length(headers, place)
        is_wanted = headers.get("warc-type", "").lower() == wanted
        block = stream.take(min(num_bytes, max_block_bytes)) if is_wanted else b""
        stream.skip(num_bytes - len(block))
        yield WarcRecord(place, headers, block, num_bytes)


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a raw stream, for a buffer in front of it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class _Counted:
    """A stream that knows where it is, and for which the end of the file is no answer."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._stream = io.BufferedReader(_Pieces(pieces), PIECE_BYTES)
        self.position = 0

    def line(self) -> bytes:
        """Up to the next line end; empty at the end of the file."""
        line = self._stream.readline(_MAX_LINE_BYTES)
        self.position += len(line)
        if len(line) == _MAX_LINE_BYTES:
            raise BrokenStreamError(CORRUPT, f"no WARC record: a line of {_MAX_LINE_BYTES} bytes or more in a header")
        return line

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        content = self._stream.read(count)
        self.position += len(content)
        if len(content) < count:
            raise _cut_short(len(content), count)
        return content

    def skip(self, count: int) -> None:
        """Passes over the next ``count`` bytes."""
        left = count
        while left:
            passed = len(self._stream.read(min(left, PIECE_BYTES)))
            if not passed:
                raise _cut_short(count - left, count)
            left -= passed
        self.position += count


def _cut_short(there: int, expected: int) -> BrokenStreamError:
    return BrokenStreamError(TRUNCATED, f"the file ends {there} bytes into a record of {expected}")


def _first_line(stream: _Counted) -> bytes | None:
    """The line that begins a record, blank ones before it passed over; None at the end of the file."""
    while line := stream.line():
        if line.strip():
            return line
    return None


def _headers(stream: _Counted) -> dict[str, str]:
    headers: dict[str, str] = {}
    name = ""
    for _ in range(_MAX_HEADER_LINES):
        line = stream.line()
        if not line.endswith(b"\n"):
            raise BrokenStreamError(TRUNCATED, "the file ends in the header of a record")
        if not line.strip():
            return headers
        text = line.decode("utf-8", "replace")
        if line[:1] in b" \t" and name:  # A folded value goes on.
            headers[name] += " " + text.strip()
            continue
        name, _, value = text.partition(":")
        name = name.strip().lower()
        headers[name] = value.strip()
    raise BrokenStreamError(CORRUPT, f"no WARC record: a header of more than {_MAX_HEADER_LINES} lines")


def _content_length(headers: Mapping[str, str], place: int) -> int:
    text = headers.get("content-length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        shown = f"Content-Length {text!r}" if text else "no Content-Length"
        raise BrokenStreamError(CORRUPT, f"the WARC record at byte {place} of the decompressed file has {shown}")
    return int(text)
