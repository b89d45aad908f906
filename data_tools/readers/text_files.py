"""Text trees: every file is one document."""

from collections.abc import Iterator

from data_tools.io.file_range import FileRange
from data_tools.io.streams import BrokenStreamError, decompressed_pieces
from data_tools.readers.files import open_input
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record


def read_text(part: FileRange, options: ReadOptions, count: RangeCount) -> Iterator[Record | BadRecord]:
    """The one record of a file; see `record.Reader`."""
    pieces: list[bytes] = []
    num_bytes = 0
    with open_input(part.path) as stream:
        try:
            for piece in decompressed_pieces(stream, part.path):
                num_bytes += len(piece)
                if num_bytes > options.max_document_bytes:
                    detail = f"more than max_document_bytes={options.max_document_bytes} bytes"
                    yield BadRecord(1, "too_long", detail)
                    return
                pieces.append(piece)
        except BrokenStreamError as error:
            yield BadRecord(1, error.reason, error.detail)
            return
    try:
        text = b"".join(pieces).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield BadRecord(1, "invalid_utf8", f"{error.reason} at byte {error.start}")
        return
    if not text:
        yield BadRecord(1, "empty", "the file is empty")
        return
    yield Record(0, 1, text, {})
