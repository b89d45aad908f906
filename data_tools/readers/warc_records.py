"""WARC: web pages of a crawl, their codings taken off and their main text extracted."""

from collections.abc import Callable, Iterator

from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.io.streams import BrokenStreamError, decompressed_pieces
from data_tools.readers.files import open_input
from data_tools.readers.http_response import HttpResponse, decoded_body, parse_response
from data_tools.readers.jsonl import RejectedRecordError
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record
from data_tools.readers.warc_file import WarcRecord, read_warc_records

_INSTALL = "in the checkout run: pip install -e '.[data]'"
_FOUND = 200
# Beside the body a block holds status and headers.
_HEAD_BYTES = 64 * 1024


def read_warc(part: FileRange, options: ReadOptions, count: RangeCount) -> Iterator[Record | BadRecord]:
    """The pages of HTTP responses; records that are not pages (requests, images) are not records of ours.

    See `record.Reader`. A page whose status is not 200, or whose coding is not read, is a bad record. The extracted
    text of a page keeps its address under "url" if `keep` names it.
    """
    extract = _extractor(options.extractor)
    largest_block = options.max_document_bytes + _HEAD_BYTES
    number = 0
    with open_input(part.path) as stream:
        try:
            for record in read_warc_records(decompressed_pieces(stream, part.path), "response", largest_block):
                response = parse_response(record.block)
                if response.is_page:
                    yield _page(record, response, number, extract, options)
                    number += 1
        except BrokenStreamError as error:
            yield BadRecord(number, error.reason, f"{error.detail}; everything after it is lost")
        count.lines = number


def _page(
    record: WarcRecord, response: HttpResponse, number: int, extract: Callable[[bytes], str], options: ReadOptions
) -> Record | BadRecord:
    url = record.headers.get("warc-target-uri", "").strip("<>")
    if response.status != _FOUND:
        return BadRecord(number, "http_status", f"status {response.status} of {url}")
    try:
        if record.num_bytes > len(record.block):
            raise RejectedRecordError("too_long", f"more than max_document_bytes={options.max_document_bytes} bytes")
        text = extract(decoded_body(response, options.max_document_bytes))
    except RejectedRecordError as error:
        return BadRecord(number, error.reason, error.detail)
    except (ValueError, RuntimeError, LookupError) as error:
        return BadRecord(number, "not_extracted", str(error))
    if not text:
        return BadRecord(number, "empty", "no text on the page")
    return Record(record.place, number, text, {"url": url} if options.kept(("url",)) else {})


def _extractor(name: str) -> Callable[[bytes], str]:
    if name == "trafilatura":
        try:
            import trafilatura
        except ImportError as error:
            raise DataError("extractor trafilatura is not installed; run: pip install trafilatura") from error
        return lambda body: trafilatura.extract(body) or ""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import detect_encoding
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise DataError(f"extractor resiliparse is not installed; {_INSTALL}") from error

    def extract(body: bytes) -> str:
        tree = HTMLTree.parse_from_bytes(body, detect_encoding(body) or "utf-8")
        return str(extract_plain_text(tree, main_content=True, alt_texts=False)).strip()

    return extract
