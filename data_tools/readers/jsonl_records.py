"""JSON Lines, plain or compressed; of plain files any byte range."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from data_tools import _native
from data_tools.io.file_range import FileRange
from data_tools.io.read_ahead import read_ahead
from data_tools.io.streams import PIECE_BYTES, compression_of, decompressed_pieces, refuse_unread
from data_tools.readers.files import open_input
from data_tools.readers.jsonl import RejectedRecordError, parse_record, read_lines, text_of_record
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record


def read_jsonl(part: FileRange, options: ReadOptions, count: RangeCount) -> Iterator[Record | BadRecord]:
    """The records whose line begins in the range; see `record.Reader`."""
    refuse_unread(PurePosixPath(part.path))
    with open_input(part.path) as stream:
        lines = LineRange(stream, part)
        for line in read_lines(lines, options.max_document_bytes):
            number, place = line.number - lines.skipped_lines, line.offset + lines.origin
            try:
                record = parse_record(line)
                text = text_of_record(record, options.text_key)
                yield Record(place, number, text, {key: record[key] for key in options.kept(record)})
            except RejectedRecordError as error:
                yield BadRecord(number, error.reason, error.detail)
        count.lines = lines.num_lines


class LineRange:
    """The bytes of the lines that begin in [start, stop) of a file.

    A range that does not begin the file gives the line end before its first line too, so that a byte-order mark there
    is not taken for one at the beginning of the file.

    Attributes:
        origin: file offset of the first byte given.
        skipped_lines: 1 if that line end was given, which counts as a line.
        num_lines: lines given so far, that one not included.
    """

    def __init__(self, stream: BinaryIO, part: FileRange) -> None:
        self._stream = stream
        self._path, self._start, self._stop = part.path, part.start, part.stop
        self.origin = 0
        self.skipped_lines = 0
        self.num_lines = 0

    def pieces(self) -> Iterator[bytes]:
        """See `jsonl.PieceStream`."""
        if self._stop is None and self._start == 0:
            pieces = decompressed_pieces(self._stream, self._path)
            for piece in pieces if compression_of(self._stream, self._path) == "none" else read_ahead(pieces):
                self.num_lines += _native.count_line_ends(piece)
                yield piece
            return
        self._stream.seek(max(self._start - 1, 0))
        position = max(self._start - 1, 0)
        inside = self._start == 0
        while piece := self._stream.read(PIECE_BYTES):
            begin = position
            position += len(piece)
            if not inside:
                first = piece.find(b"\n")
                if first < 0:
                    if self._stop is not None and position >= self._stop:
                        return
                    continue
                if self._stop is not None and begin + first + 1 >= self._stop:
                    return
                inside, self.origin, self.skipped_lines = True, begin + first, 1
                self.num_lines = -1
                piece, begin = piece[first:], begin + first
            if self._stop is not None and position >= self._stop:
                # The last line is the one that is open at stop - 1, or ends there.
                last = piece.find(b"\n", max(self._stop - 1 - begin, 0))
                if last >= 0:
                    piece = piece[: last + 1]
                    self.num_lines += _native.count_line_ends(piece)
                    yield piece
                    return
            self.num_lines += _native.count_line_ends(piece)
            yield piece
