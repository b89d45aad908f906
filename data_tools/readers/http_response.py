"""HTTP responses as crawlers store them: status, headers, and the body without its transfer and content codings."""

import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from data_tools.io.streams import BrokenStreamError, Compression, decompressed
from data_tools.readers.jsonl import RejectedRecordError

# The same for every reason that stands in the list of what was rejected.
NOT_DECODED, TOO_LONG = "not_decoded", "too_long"
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})\b", flags=re.IGNORECASE)
_LINE_END = re.compile(rb"\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
# How a page begins; nothing that is compressed does.
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-zA-Z]")
_MAGIC: dict[str, bytes] = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_CODINGS: dict[str, Compression] = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_IDENTITY = ("", "identity", "none")


@dataclass(frozen=True)
class HttpResponse:
    """A response.

    Attributes:
        status: 200, 404, ...; 0 if there is no status line.
        headers: by name in lower case; values of a repeated one joined by commas.
        body: as it was sent.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_page(self) -> bool:
        """Whether it says that it is HTML; where it says nothing, whether it begins as HTML does."""
        kind = self.headers.get("content-type", "").lower()
        return "html" in kind if kind else _MARKUP.match(self.body) is not None


def parse_response(block: bytes) -> HttpResponse:
    """What a server sent: status line, headers, an empty line, the body."""
    end = _HEAD_END.search(block)
    head, body = (block[: end.start()], block[end.end() :]) if end else (block, b"")
    first, *lines = head.splitlines() or [b""]
    status = _STATUS.match(first)
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").partition(":")
        name = name.strip().lower()
        headers[name] = ", ".join(filter(None, (headers.get(name, ""), value.strip())))
    return HttpResponse(int(status[1]) if status else 0, headers, body)


def decoded_body(response: HttpResponse, max_bytes: int) -> bytes:
    """The body as the page's author wrote it.

    Crawlers differ: some store what was sent, some take the codings off and leave the headers that name them. So a body
    that shows that it is not coded as its header says is taken as it is.

    Args:
        response: a whole one.
        max_bytes: of the body.
    Raises:
        RejectedRecordError: not_decoded, for a coding that is not read or does not fit the bytes; too_long.
    """
    body = response.body
    for header in ("transfer-encoding", "content-encoding"):
        # Codings are listed in the order in which they were applied.
        for coding in reversed(response.headers.get(header, "").lower().split(",")):
            body = _without(coding.strip(), body, max_bytes)
    if len(body) > max_bytes:
        raise _too_long(max_bytes)
    return body


def _without(coding: str, body: bytes, max_bytes: int) -> bytes:
    if coding in _IDENTITY or not body:
        return body
    if coding == "chunked":
        return _unchunked(body)
    if coding in _CODINGS:
        return _unpacked(coding, body, max_bytes)
    if coding == "deflate":
        return _inflated(body, max_bytes)
    if _MARKUP.match(body):
        return body
    raise RejectedRecordError(NOT_DECODED, f"the body is encoded with {coding}, which is not read")


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    position = 0
    while True:
        size = _CHUNK_SIZE.match(body, position)
        if size is None:
            if not parts:
                return body
            raise RejectedRecordError(NOT_DECODED, f"chunked: no size of a chunk at byte {position} of the body")
        num_bytes = int(size[1], 16)
        if num_bytes == 0:
            return b"".join(parts)
        part = body[size.end() : size.end() + num_bytes]
        position = size.end() + num_bytes
        if len(part) < num_bytes:
            raise RejectedRecordError(NOT_DECODED, "chunked: the body ends in the middle of a chunk")
        parts.append(part)
        line_end = _LINE_END.match(body, position)
        if line_end is None:
            raise RejectedRecordError(NOT_DECODED, f"chunked: no line end at byte {position} of the body")
        position = line_end.end()


def _unpacked(coding: str, body: bytes, max_bytes: int) -> bytes:
    compression = _CODINGS[coding]
    if not body.startswith(_MAGIC[compression]):
        if _MARKUP.match(body):
            return body
        raise RejectedRecordError(NOT_DECODED, f"the body should be {coding} and is not")
    parts: list[bytes] = []
    num_bytes = 0
    try:
        for piece in decompressed(io.BytesIO(body), compression):
            parts.append(piece)
            num_bytes += len(piece)
            if num_bytes > max_bytes:
                raise _too_long(max_bytes)
    except BrokenStreamError as error:
        raise RejectedRecordError(NOT_DECODED, error.detail) from error
    return b"".join(parts)


def _inflated(body: bytes, max_bytes: int) -> bytes:
    """Deflate with zlib's head and sum, as the standard has it, or without, as servers send it too."""
    for window_bits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        stream = zlib.decompressobj(wbits=window_bits)
        try:
            content = stream.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(content) > max_bytes:
            raise _too_long(max_bytes)
        if stream.eof:
            return content
    if _MARKUP.match(body):
        return body
    raise RejectedRecordError(NOT_DECODED, "the body should be deflate and is not, or is cut short")


def _too_long(max_bytes: int) -> RejectedRecordError:
    return RejectedRecordError(TOO_LONG, f"more than max_document_bytes={max_bytes} bytes")
