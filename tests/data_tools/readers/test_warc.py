"""WARC: codings of bodies, status, letter case, files that are cut short, places of records."""

import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data_tools.cli import main
from data_tools.io.streams import BrokenStreamError
from data_tools.readers.files import find_files
from data_tools.readers.formats import format_of, reader_of
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record
from data_tools.readers.warc_file import read_warc_records

SENTENCE = "This is the main text of the page, long enough to be worth reading twice."
PAGE = f"<html><body><nav>menu</nav><main><p>{SENTENCE} {SENTENCE}</p></main></body></html>".encode()


def read(path: Path, **options: Any) -> tuple[list[Record], list[BadRecord]]:
    read_options = ReadOptions(**{"text_key": "text", "max_document_bytes": 200_000, **options})
    (file,) = find_files(str(path))
    records = list(reader_of(format_of(str(path)))(file, read_options, RangeCount()))
    return [one for one in records if isinstance(one, Record)], [one for one in records if isinstance(one, BadRecord)]


def warc_record(
    body: bytes,
    *headers: str,
    kind: str = "response",
    status: str = "HTTP/1.1 200 OK",
    url: str = "https://example.org/",
) -> bytes:
    http = "\r\n".join([status, *(headers or ("Content-Type: text/html",))]).encode() + b"\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nContent-Type: application/http; msgtype={kind}\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def chunked(body: bytes, size: int = 60) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%X;name=value\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def test_pages_are_records_and_nothing_else_is(tmp_path: Path) -> None:
    records = [
        warc_record(b"", kind="request"),
        warc_record(PAGE, "Content-Type: text/html; charset=utf-8", url="<https://example.org/a>"),
        warc_record(b"\x89PNG", "Content-Type: image/png"),
        warc_record(b"gone", "Content-Type: text/plain", status="HTTP/1.1 404 Not Found"),
        warc_record(b"<html><body></body></html>"),
        warc_record(PAGE, "content-TYPE: Text/HTML"),
        warc_record(PAGE, "Content-Type: APPLICATION/XHTML+xml"),
        warc_record(b"\n<!DOCTYPE html>" + PAGE, "Server: says nothing of types"),
        warc_record(b'{"a": 1}', "Server: says nothing of types"),
    ]
    path = tmp_path / "crawl.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, records)))
    good, bad = read(path, keep=("url",))
    assert [record.line for record in good] == [0, 2, 3, 4]
    assert good[0].fields == {"url": "https://example.org/a"}
    assert all(record.text == f"{SENTENCE} {SENTENCE}" for record in good)
    assert [(record.line, record.reason) for record in bad] == [(1, "empty")]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (("Content-Encoding: gzip",), gzip.compress(PAGE)),
        (("Content-Encoding: X-GZIP",), gzip.compress(PAGE[:50]) + gzip.compress(PAGE[50:])),
        (("Content-Encoding: deflate",), zlib.compress(PAGE)),
        (("Content-Encoding: deflate",), raw_deflate(PAGE)),
        (("Content-Encoding: zstd",), zstandard.compress(PAGE)),
        (("Content-Encoding: identity",), PAGE),
        (("Transfer-Encoding: Chunked",), chunked(PAGE)),
        (("Transfer-Encoding: chunked", "Content-Encoding: gzip"), chunked(gzip.compress(PAGE))),
        (("Transfer-Encoding: gzip, chunked",), chunked(gzip.compress(PAGE))),
        (("Content-Encoding: deflate, gzip",), gzip.compress(zlib.compress(PAGE))),
        # The crawler took the codings off and left the headers.
        (("Transfer-Encoding: chunked", "Content-Encoding: gzip"), PAGE),
        (("Content-Encoding: br",), PAGE),
        (("Content-Encoding: deflate",), PAGE),
        (("X-Crawl-Content-Encoding: gzip",), PAGE),
    ],
)
def test_codings_are_taken_off(tmp_path: Path, headers: Sequence[str], body: bytes) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(warc_record(body, "Content-Type: text/html", *headers))
    good, bad = read(path)
    assert ([record.text for record in good], bad) == ([f"{SENTENCE} {SENTENCE}"], [])


@pytest.mark.parametrize(
    ("headers", "body", "detail"),
    [
        (("Content-Encoding: br",), b"\x1b\x20\x00\xf8", "encoded with br, which is not read"),
        (("Content-Encoding: gzip",), gzip.compress(PAGE)[:-20], "ends in the middle of a member"),
        (("Content-Encoding: gzip",), b"\x00\x01 no gzip", "should be gzip and is not"),
        (("Content-Encoding: deflate",), zlib.compress(PAGE)[:-20], "deflate and is not, or is cut short"),
        (("Transfer-Encoding: chunked",), chunked(PAGE)[:-40], "middle of a chunk"),
        (("Transfer-Encoding: chunked",), b"4\r\n<htmlXX", "no line end at byte 7"),
        (("Transfer-Encoding: chunked",), b"4\r\n<htm\r\nl>", "no size of a chunk at byte 9"),
    ],
)
def test_what_cannot_be_decoded_is_rejected(tmp_path: Path, headers: Sequence[str], body: bytes, detail: str) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(warc_record(body, "Content-Type: text/html", *headers) + warc_record(PAGE))
    good, bad = read(path)
    assert [record.line for record in good] == [1]
    ((line, reason, said),) = bad
    assert (line, reason) == (0, "not_decoded")
    assert detail in said


def test_a_bomb_is_rejected_and_a_long_record_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    bomb = gzip.compress(b"<p>" + b"x" * 3_000_000)
    records = [
        warc_record(bomb, "Content-Type: text/html", "Content-Encoding: gzip"),
        warc_record(raw_deflate(b"<p>" + b"x" * 3_000_000), "Content-Type: text/html", "Content-Encoding: deflate"),
        warc_record(b"<p>" + b"x" * 300_000),
        warc_record(b"\0" * 300_000, "Content-Type: video/mp4"),
        warc_record(PAGE),
    ]
    path.write_bytes(b"".join(records))
    good, bad = read(path)
    assert ([record.line for record in good], [one.reason for one in bad]) == ([3], ["too_long"] * 3)


def test_other_status_is_a_rejection(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    statuses = ["HTTP/1.1 404 Not Found", "HTTP/1.0 301", "HTTP/2 200", "HTTP/1.1 206 Partial Content", "ICY"]
    path.write_bytes(b"".join(warc_record(PAGE, status=one) for one in statuses))
    good, bad = read(path)
    assert [record.line for record in good] == [2]
    assert [one.reason for one in bad] == ["http_status"] * 4
    assert [one.detail.split(" of ")[0] for one in bad] == ["status 404", "status 301", "status 206", "status 0"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_places_are_different_however_the_file_is_packed(tmp_path: Path, suffix: str) -> None:
    import bz2
    import lzma

    packed = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }[suffix]
    records = [warc_record(PAGE, url=f"https://example.org/{number}") for number in range(5)]
    places = [sum(map(len, records[:number])) for number in range(5)]
    path = tmp_path / f"a.warc{suffix}"
    for content in (packed(b"".join(records)), b"".join(map(packed, records))):  # One member, or one a record.
        path.write_bytes(content)
        good, bad = read(path)
        assert ([record.place for record in good], bad) == (places, [])


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    first, second = warc_record(PAGE), warc_record(PAGE, url="https://example.org/second")
    whole = first + second
    path = tmp_path / "cut.warc"
    for length in range(0, len(whole) - 4, 13):
        path.write_bytes(whole[:length])
        good, bad = read(path)
        assert len(good) == (length >= len(first) - 4), length
        is_whole = length == 0 or len(first) - 4 <= length <= len(first)  # After a block nothing is missing.
        assert [one.reason for one in bad] == ([] if is_whole else ["truncated_stream"]), length
    packed = b"".join(map(gzip.compress, (first, second)))
    path = tmp_path / "cut.warc.gz"
    for missing, num_good in ((1, 2), (100, 1), (len(gzip.compress(second)) - 5, 1)):
        path.write_bytes(packed[:-missing])
        good, bad = read(path)
        assert (len(good), [one.reason for one in bad]) == (num_good, ["truncated_stream"])
    path = tmp_path / "request.warc"  # A record that is none of ours may be cut as well.
    path.write_bytes((first + warc_record(PAGE, kind="request"))[:-100])
    assert [one.reason for one in read(path)[1]] == ["truncated_stream"]


@pytest.mark.parametrize(
    "content",
    [
        b"<html>no archive</html>\n" * 10,
        b"x" * 100_000,
        b"WARC/1.0\r\nWARC-Type: response\r\n\r\nHTTP/1.1 200 OK",
        b"WARC/1.0\r\nContent-Length: -5\r\n\r\n",
        b"WARC/1.0\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
    ],
)
def test_what_is_no_warc_is_a_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(warc_record(PAGE) + content)
    good, bad = read(path)
    assert (len(good), [one.reason for one in bad]) == (1, ["corrupt_stream"])
    assert "everything after it is lost" in bad[0].detail


def test_records_are_those_of_fastwarc() -> None:
    """The library is the oracle of the framing, on what it and we both read."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    folded = warc_record(PAGE).replace(b"WARC-Date", b"Folded: a\r\n  b\r\nWARC-Date")
    records = [warc_record(PAGE * n, kind=kind) for n in (1, 40) for kind in ("response", "request")] + [folded] * 2
    content = b"\r\n".join(records)
    theirs = [
        (one.stream_pos, one.reader.read())
        for one in ArchiveIterator(io.BytesIO(content), WarcRecordType.response, parse_http=False)
    ]
    pieces = (content[start : start + 100] for start in range(0, len(content), 100))
    ours = [one for one in read_warc_records(pieces, "response", 10**6) if one.headers["warc-type"] == "response"]
    assert [one.block for one in ours] == [block for _, block in theirs]
    assert ours[-1].headers["folded"] == "a b"
    assert [content[one.place :][:8] for one in ours] == [b"WARC/1.0"] * 4


def test_errors_of_the_stream_are_not_swallowed() -> None:
    def pieces():  # type: ignore[no-untyped-def]
        yield warc_record(PAGE)[:200]
        raise BrokenStreamError("corrupt_stream", "here")

    with pytest.raises(BrokenStreamError, match="here"):
        list(read_warc_records(pieces(), "response", 10**6))


def test_a_cut_archive_fails_the_run_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.warc"
    path.write_bytes((warc_record(PAGE) + warc_record(PAGE))[:-200])
    output = tmp_path / "out"
    assert main(["stage", "read", str(path), "--output", str(output), "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert "cut.warc (from line or row 1 on: the file ends" in said.err
    assert ["truncated_stream", "-1"] in [line.split() for line in said.out.splitlines()]
