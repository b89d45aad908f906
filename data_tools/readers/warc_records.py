"""WARC: web pages of a crawl, their main text extracted."""

from collections.abc import Callable, Iterator
from typing import Any

from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.io.streams import CORRUPT
from data_tools.readers.files import open_input
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record

EXTRACTORS = ("resiliparse", "trafilatura")
_INSTALL = "in the checkout run: pip install -e '.[data]'"


def read_warc(part: FileRange, options: ReadOptions, count: RangeCount) -> Iterator[Record | BadRecord]:
    """The pages of HTTP responses; records that are not pages (requests, images) are not records of ours.

    See `record.Reader`. The extracted text of a page keeps its address under "url" if `keep` names it.
    """
    fastwarc = _fastwarc()
    extract = _extractor(options.extractor)
    number = 0
    with open_input(part.path) as stream:
        try:
            archive = fastwarc.ArchiveIterator(stream, record_types=fastwarc.WarcRecordType.response, parse_http=True)
            for record in archive:
                if "html" not in (record.http_content_type or ""):
                    continue
                yield _page(record, number, extract, options)
                number += 1
        except (OSError, ValueError, RuntimeError) as error:
            yield BadRecord(number, CORRUPT, f"{error}; everything after it is lost")
        count.lines = number


def _page(record: Any, number: int, extract: Callable[[bytes], str], options: ReadOptions) -> Record | BadRecord:
    body = record.reader.read(options.max_document_bytes + 1)
    if len(body) > options.max_document_bytes:
        return BadRecord(number, "too_long", f"more than max_document_bytes={options.max_document_bytes} bytes")
    try:
        text = extract(body)
    except (ValueError, RuntimeError, LookupError) as error:
        return BadRecord(number, "not_extracted", str(error))
    if not text:
        return BadRecord(number, "empty", "no text on the page")
    fields = {"url": record.headers.get("WARC-Target-URI", "")} if options.kept(("url",)) else {}
    return Record(int(record.stream_pos), number, text, fields)


def _fastwarc() -> Any:
    try:
        import fastwarc
    except ImportError as error:
        raise DataError(f"WARC needs fastwarc; {_INSTALL}") from error
    return fastwarc


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
