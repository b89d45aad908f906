"""Objects of JSON Lines files, any range of them, and of files that are one JSON array."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.io.streams import BrokenStreamError, decompressed_pieces
from data_tools.readers.files import open_input
from data_tools.readers.jsonl import RejectedRecordError, parse_record, read_lines
from data_tools.readers.jsonl_records import LineRange
from data_tools.readers.record import BadRecord, RangeCount

_BOM = b"\xef\xbb\xbf"
# An array is parsed whole: some ten times this much memory.
LARGEST_ARRAY_BYTES = 1024**3


class PlacedObject(NamedTuple):
    """An object and where it stands."""

    place: int  # byte offset of its line in the decompressed file, or its number in an array from 0
    line: int  # from 1, counted from the beginning of the range; of an array the number of the object
    record: dict[str, Any]


def is_array(path: str) -> bool:
    """Whether a file is one JSON array: its first character that is not blank is a bracket.

    A damaged file is none; reading it says what is wrong with it.
    """
    with open_input(path) as stream:
        try:
            for number, piece in enumerate(decompressed_pieces(stream, path)):
                start = piece.removeprefix(_BOM if number == 0 else b"").lstrip()
                if start:
                    return start.startswith(b"[")
        except BrokenStreamError:
            pass
    return False


def read_objects(
    part: FileRange, max_document_bytes: int, count: RangeCount, *, array: bool
) -> Iterator[PlacedObject | BadRecord]:
    """Every object in the range, or what stands in its place.

    Args:
        part: a file, or of plain JSON Lines a range.
        max_document_bytes: a longer line is a bad record.
        count: is told the lines.
        array: whether the file is one JSON array.
    Raises:
        DataError: an array is no JSON, or larger than 1 GiB.
    """
    if array:
        yield from _array(part, count)
        return
    with open_input(part.path) as stream:
        lines = LineRange(stream, part)
        for line in read_lines(lines, max_document_bytes):
            number, place = line.number - lines.skipped_lines, line.offset + lines.origin
            try:
                yield PlacedObject(place, number, parse_record(line))
            except RejectedRecordError as error:
                yield BadRecord(number, error.reason, error.detail)
        count.lines = lines.num_lines


def _array(part: FileRange, count: RangeCount) -> Iterator[PlacedObject | BadRecord]:
    objects = _parsed(part.path)
    count.lines = len(objects)
    for place, record in enumerate(objects):
        if isinstance(record, dict):
            yield PlacedObject(place, place + 1, record)
        else:
            yield BadRecord(place + 1, "not_an_object", "the entry of the array is not an object")


def _parsed(path: str) -> list[Any]:
    content = bytearray()
    with open_input(path) as stream:
        try:
            for piece in decompressed_pieces(stream, path):
                content += piece
                if len(content) > LARGEST_ARRAY_BYTES:
                    raise DataError(
                        f"{path}: a JSON array of more than {LARGEST_ARRAY_BYTES // 2**20} MiB would be held in memory "
                        f"whole; write one object a line: jq -c '.[]' {path}"
                    )
        except BrokenStreamError as error:
            raise DataError(f"{path}: {error.detail}; get the file again") from error
    if content.startswith(_BOM):
        del content[: len(_BOM)]
    try:
        objects = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"{path}: begins as a JSON array but is no JSON: {error.msg} at character {error.pos}; mend the file"
        ) from error
    assert isinstance(objects, list)
    return objects
