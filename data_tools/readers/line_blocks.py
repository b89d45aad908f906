"""JSON Lines, megabytes of whole lines at a time, for kernels that find the lines themselves."""

from collections.abc import Iterator
from typing import NamedTuple

from data_tools import _native
from data_tools.io.streams import BrokenStreamError
from data_tools.readers.jsonl import LONG_LINE_BYTES, Line, PieceStream, append_part, finished_line

_BLOCK_BYTES = 4 * 1024 * 1024


class LineBlock(NamedTuple):
    """Whole lines as they stand in the file; the last line of the file may lack its end."""

    number: int  # of the first line, from 1
    offset: int  # of its first byte in the decompressed file
    content: bytes
    num_records: int  # lines that are not blank


def read_blocks(stream: PieceStream, max_line_bytes: int) -> Iterator[LineBlock | Line]:
    """The lines of ``stream``, in order, most of them in blocks.

    Long lines, and what stands for the rest of a damaged stream, come by themselves, as `read_lines` gives them.

    Raises:
        DataError: the disk fails.
    """
    pending = _Pending(max_line_bytes)
    try:
        for piece in stream.pieces():
            yield from pending.take(piece)
    except BrokenStreamError as error:
        yield from pending.block()
        detail = f"{error.detail}; everything after it is lost"
        yield Line(pending.number, pending.offset, b"", error.reason, detail)
        return
    yield from pending.end()


def line_of(block: LineBlock, line: int, start: int, stop: int, max_line_bytes: int) -> Line:
    """The line number ``line``, from 0, of a block, its bytes from ``start`` to ``stop``; it is not blank."""
    content = block.content[start:stop]
    (found,) = finished_line(block.number + line, block.offset + start, [content], stop - start, max_line_bytes)
    return found


def lines_of(block: LineBlock, max_line_bytes: int) -> Iterator[Line]:
    """The lines of a block that are not blank."""
    offset = block.offset
    for number, content in enumerate(block.content.split(b"\n"), block.number):
        yield from finished_line(number, offset, [content], len(content), max_line_bytes)
        offset += len(content) + 1


class _Pending:
    """What has been read and not been given away yet.

    Attributes:
        number, offset: of the first line of it; behind `block`, of the line whose end has not been read.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self.number, self.offset = 1, 0
        self._max_line_bytes = max_line_bytes
        self._whole: list[bytes | bytearray | memoryview] = []  # together lines, each with its end
        self._whole_bytes = 0
        self._open: list[bytes | bytearray] = []  # of the line whose end has not been read yet
        self._open_bytes = 0

    def take(self, piece: bytes) -> Iterator[LineBlock | Line]:
        """More of the stream, at most LONG_LINE_BYTES."""
        first = piece.find(b"\n")
        if self._open_bytes + (len(piece) if first < 0 else first) > LONG_LINE_BYTES:
            yield from self.block()
            self._add(piece if first < 0 else piece[:first])
            if first < 0:
                return
            yield from self._long_line()
            piece = piece[first + 1 :]
        cut = piece.rfind(b"\n") + 1
        if cut:
            # Not copied before all of the block is.
            self._whole += (*self._open, memoryview(piece)[:cut])
            self._whole_bytes += self._open_bytes + cut
            self._open, self._open_bytes = [], 0
        self._add(piece[cut:])
        if self._whole_bytes >= _BLOCK_BYTES:
            yield from self.block()

    def end(self) -> Iterator[LineBlock | Line]:
        """What is left when the stream has ended."""
        if self._open_bytes > LONG_LINE_BYTES:
            yield from self.block()
            yield from self._long_line()
            return
        self._whole += self._open
        yield from self.block()

    def block(self) -> Iterator[LineBlock]:
        """The whole lines, if there are any."""
        content = b"".join(self._whole)
        self._whole, self._whole_bytes = [], 0
        if content:
            num_lines, num_records = _native.count_records(content, self.number == 1, self._max_line_bytes)
            yield LineBlock(self.number, self.offset, content, num_records)
            self.number += num_lines
            self.offset += len(content)

    def _add(self, part: bytes) -> None:
        self._open_bytes += len(part)
        # A line that is too long is not held, as soon as it is no part of a block either.
        if self._open_bytes <= max(self._max_line_bytes, LONG_LINE_BYTES):
            append_part(self._open, part, self._open_bytes)
        else:
            self._open = []

    def _long_line(self) -> Iterator[Line]:
        yield from finished_line(self.number, self.offset, self._open, self._open_bytes, self._max_line_bytes)
        self.number, self.offset = self.number + 1, self.offset + self._open_bytes + 1
        self._open, self._open_bytes = [], 0
