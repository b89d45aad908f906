"""JSON Lines, one record after the other: a bad record costs that record and is named by file and line."""

import codecs
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson

from data_tools.io.streams import BrokenStreamError
from data_tools.text.normalization import nfc

MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
# The most that may be allowed: NFC triples the bytes of a text at worst and a token has at least one byte, so the
# tokens of a document can be counted in Megatron's int32.
LARGEST_DOCUMENT_BYTES = 512 * 1024 * 1024
# A longer line is collected in a bytearray, which grows in place, and its text is taken out in pieces (`long_text`).
LONG_LINE_BYTES = 8 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line that is not blank, or what stands in its place."""

    number: int  # from 1
    offset: int  # of its first byte in the decompressed file
    content: bytes | bytearray  # without line end; empty if `reason` is set
    reason: str = ""  # why there is no content: too_long, truncated_stream, corrupt_stream
    detail: str = ""


@dataclass(frozen=True)
class Rejection:
    """A record that gave no document."""

    file: str
    line: int
    reason: str
    detail: str


class RejectedRecordError(Exception):
    """Raised while a record is parsed; the reason is one of a fixed set of words, the detail is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class PieceStream(Protocol):
    """Bytes in bounded pieces; `streams.InputStream` is one."""

    def pieces(self) -> Iterator[bytes]:
        """The content; raises BrokenStreamError where it is damaged."""
        ...


def read_lines(stream: PieceStream, max_line_bytes: int = MAX_DOCUMENT_BYTES) -> Iterator[Line]:
    """The lines of ``stream`` that are not blank.

    A byte-order mark at the start and a carriage return at the end of a line are dropped. A line longer than
    ``max_line_bytes`` is skipped without being held in memory. A damaged compressed stream ends in a line that says so.

    Raises:
        DataError: the disk fails.
    """
    number, offset = 1, 0
    parts: list[bytes | bytearray] = []  # of the line being collected, whose end has not been read yet
    num_bytes = 0
    try:
        for piece in stream.pieces():
            first, *others = piece.split(b"\n")
            for position, part in enumerate((first, *others)):
                if position:
                    yield from finished_line(number, offset, parts, num_bytes, max_line_bytes)
                    number, offset = number + 1, offset + num_bytes + 1
                    parts, num_bytes = [], 0
                num_bytes += len(part)
                if num_bytes <= max_line_bytes:
                    append_part(parts, part, num_bytes)
                else:
                    parts = []
    except BrokenStreamError as error:
        yield Line(number, offset, b"", error.reason, f"{error.detail}; everything after it is lost")
        return
    yield from finished_line(number, offset, parts, num_bytes, max_line_bytes)


def append_part(parts: list[bytes | bytearray], part: bytes, num_bytes: int) -> None:
    """Adds to ``parts``, of a line whose end has not been read yet, another, with which they are ``num_bytes`` long."""
    if num_bytes <= LONG_LINE_BYTES or not parts:
        parts.append(part)
        return
    if not isinstance(parts[0], bytearray):
        parts[:] = [bytearray().join(parts)]
    parts[0] += part


def finished_line(
    number: int, offset: int, parts: list[bytes | bytearray], num_bytes: int, max_line_bytes: int
) -> Iterator[Line]:
    """The line of which ``parts`` are all bytes but the line end, unless it is blank; uses the parts up.

    Args:
        number: of the line in the file, from 1.
        offset: of its first byte.
        parts: at least one, or, of a line that is too long, anything.
        num_bytes: of the line.
        max_line_bytes: a longer line is a `Line` with the reason too_long.
    """
    if num_bytes > max_line_bytes:
        detail = f"{num_bytes} bytes, more than max_document_bytes={max_line_bytes}"
        yield Line(number, offset, b"", "too_long", detail)
        return
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    parts.clear()  # A long line is held once, not twice.
    if isinstance(content, bytearray):  # Shortened in place.
        del content[: len(_BOM) if number == 1 and content.startswith(_BOM) else 0]
        del content[len(content) - content.endswith(b"\r") :]
    else:
        if number == 1:
            content = content.removeprefix(_BOM)
        content = content.removesuffix(b"\r")
    if content and not content.isspace():
        yield Line(number, offset, content)


def parse_text(line: Line, text_key: str) -> str:
    """The text of a record in NFC; never empty, always encodable as UTF-8.

    Raises:
        RejectedRecordError: as `parse_record` and `text_of_record` do.
    """
    return nfc(text_of_record(parse_record(line), text_key))


def parse_record(line: Line) -> dict[str, Any]:
    """The object on a line.

    Raises:
        RejectedRecordError: with reason not_json (NaN, Infinity and nesting deeper than 1024 among it), invalid_utf8,
            lone_surrogate, not_an_object, or the line's own reason.
    """
    if line.reason:
        raise RejectedRecordError(line.reason, line.detail)
    try:
        record = orjson.loads(line.content)
    except orjson.JSONDecodeError as error:
        raise not_json(line.content, error) from error
    if not isinstance(record, dict):
        raise RejectedRecordError("not_an_object", f"the record is {_kind(record)}, not an object")
    return record


def text_of_record(record: Mapping[str, Any], text_key: str) -> str:
    """The text of a record as it is; never empty.

    Raises:
        RejectedRecordError: with reason missing_text, text_not_string or empty.
    """
    if text_key not in record:
        keys = ", ".join(map(repr, list(record)[:8]))
        raise RejectedRecordError("missing_text", f"no key {text_key!r}; the record has {keys or 'no keys'}")
    text = record[text_key]
    if not isinstance(text, str):
        raise RejectedRecordError("text_not_string", f"{text_key!r} is {_kind(text)}, not a string")
    if not text:
        raise RejectedRecordError("empty", f"{text_key!r} is the empty string")
    return text


def not_json(content: bytes | bytearray, error: orjson.JSONDecodeError) -> RejectedRecordError:
    """Why ``content`` cannot be parsed: invalid_utf8 if any of it is, else lone_surrogate or not_json."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), LONG_LINE_BYTES):
            decoder.decode(content[start : start + LONG_LINE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as decode_error:
        return RejectedRecordError("invalid_utf8", decode_error.reason + _place(content, start, decode_error))
    reason = "lone_surrogate" if "surrogate" in error.msg else "not_json"
    return RejectedRecordError(reason, f"{error.msg} at character {error.pos} of the line")


def _place(content: bytes | bytearray, start: int, error: UnicodeDecodeError) -> str:
    # What the decoder kept from the piece before stands at the beginning of what it complains about.
    kept = len(error.object) - len(content[start : start + LONG_LINE_BYTES])
    return f" at byte {start - kept + error.start} of the line"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]
