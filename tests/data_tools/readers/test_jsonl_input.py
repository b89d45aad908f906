"""Every kind of bad input costs the record it is in, is named, and nothing else."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zstandard

from data_tools.errors import DataError
from data_tools.io.streams import InputStream
from data_tools.readers.jsonl import Line, RejectedRecordError, parse_text, read_lines
from tests.support.bombs import gzip_bomb

BIG = 10**9


def lines_of(path: Path, max_line_bytes: int = BIG) -> list[Line]:
    stream = InputStream(path)
    try:
        return list(read_lines(stream, max_line_bytes))
    finally:
        stream.close()


def written(tmp_path: Path, content: bytes, name: str = "a.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def reason_of(content: bytes, text_key: str = "text") -> tuple[str, str]:
    with pytest.raises(RejectedRecordError) as raised:
        parse_text(Line(1, 0, content), text_key)
    return raised.value.reason, raised.value.detail


def test_line_numbers_and_offsets(tmp_path: Path) -> None:
    lines = lines_of(written(tmp_path, b"one\n\n  \t \ntwo\r\n\r\nthree"))
    assert [(line.number, line.offset, line.content) for line in lines] == [
        (1, 0, b"one"),
        (4, 10, b"two"),
        (6, 17, b"three"),
    ]


def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    lines = lines_of(written(tmp_path, b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n"))
    assert [line.content for line in lines] == [b"one", b"\xef\xbb\xbftwo"]


def test_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert lines_of(written(tmp_path, b"")) == []
    assert lines_of(written(tmp_path, b"\xef\xbb\xbf")) == []


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_lines_across_pieces(tmp_path: Path, size: int) -> None:
    lines = lines_of(written(tmp_path, b"a" * size + b"\n" + b"b" * size + b"\nc"))
    assert [line.content for line in lines] == [b"a" * size, b"b" * size, b"c"]
    assert [line.offset for line in lines] == [0, size + 1, 2 * size + 2]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_too_long_line_costs_that_line(tmp_path: Path, end: bytes) -> None:
    lines = lines_of(written(tmp_path, b"a\n" + b"b" * 3_000_000 + b"\nc\n" + b"d" * 101 + end), 100)
    assert [(line.number, line.content, line.reason) for line in lines] == [
        (1, b"a", ""),
        (2, b"", "too_long"),
        (3, b"c", ""),
        (4, b"", "too_long"),
    ]
    assert "3000000 bytes, more than max_document_bytes=100" in lines[1].detail
    assert lines[2].offset == 3_000_003


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"{", "not_json", "at character"),
        (b"hello", "not_json", "at character 0 of the line"),
        (b'{"text": NaN}', "not_json", "at character 9"),
        (b'{"text": "a", "score": Infinity}', "not_json", "at character"),
        (b'{"text": "a"} {"text": "b"}', "not_json", "at character 14"),
        (b'{"text": "a' + b"\x00" + b'"}', "not_json", "control character"),
        (b'{"text": ' + b"[" * 100_000, "not_json", "depth limit"),
        (b"[" * 100_000 + b"]" * 100_000, "not_json", "depth limit"),
        (b'["text"]', "not_an_object", "an array"),
        (b'"text"', "not_an_object", "a string"),
        (b"null", "not_an_object", "null"),
        (b"12", "not_an_object", "a number"),
        (b'{"content": "a"}', "missing_text", "no key 'text'; the record has 'content'"),
        (b"{}", "missing_text", "no keys"),
        (b'{"text": 3}', "text_not_string", "'text' is a number"),
        (b'{"text": null}', "text_not_string", "'text' is null"),
        (b'{"text": true}', "text_not_string", "'text' is a boolean"),
        (b'{"text": ["a"]}', "text_not_string", "'text' is an array"),
        (b'{"text": {"a": 1}}', "text_not_string", "'text' is an object"),
        (b'{"text": ""}', "empty", "'text' is the empty string"),
        (b'{"text": "\xff"}', "invalid_utf8", "invalid start byte at byte 10"),
        ('{"text": "\ud800"}'.encode("utf-8", "surrogatepass"), "invalid_utf8", "at byte 10"),
        (b'{"text": "a\\ud800"}', "lone_surrogate", "surrogate"),
        (b'{"text": "\\udc00 b"}', "lone_surrogate", "surrogate"),
        (b'{"text": "\\ud800\\ud800"}', "lone_surrogate", "surrogate"),
    ],
)
def test_reasons(content: bytes, reason: str, detail: str) -> None:
    actual_reason, actual_detail = reason_of(content)
    assert actual_reason == reason
    assert detail in actual_detail


def test_text_is_taken_from_its_key_in_nfc() -> None:
    line = Line(1, 0, b'{"text": 1, "body": "cafe\\u0301 \\ud83d\\ude42 \\u0000", "x": [1e3]}')
    assert parse_text(line, "body") == "caf\u00e9 🙂 \x00"
    assert parse_text(Line(1, 0, b'{"text": "a", "text": "b"}'), "text") == "b"


RECORDS = [orjson.dumps({"text": f"record {number} " + "x" * (number % 50)}) for number in range(2000)]
CONTENT = b"\n".join(RECORDS) + b"\n"


def zstd_content(content: bytes) -> bytes:
    """With a checksum and several blocks, as the command line tool writes it."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    buffer = io.BytesIO()
    with compressor.stream_writer(buffer, closefd=False) as writer:
        for start in range(0, len(content), 10_000):
            writer.write(content[start : start + 10_000])
            writer.flush(zstandard.FLUSH_BLOCK)
    return buffer.getvalue()


def bzip2_content(content: bytes) -> bytes:
    """Many streams, as parallel bzip2 writes them: one alone gives nothing before its end."""
    return b"".join(bz2.compress(content[start : start + 4096]) for start in range(0, max(1, len(content)), 4096))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd_content,
    "bz2": bzip2_content,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files(tmp_path: Path, suffix: str, named: bool) -> None:
    name = f"a.jsonl.{suffix}" if named else "a.jsonl"
    assert [line.content for line in lines_of(written(tmp_path, COMPRESS[suffix](CONTENT), name))] == RECORDS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_several_members_are_one_stream(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    content = compress(CONTENT[:50_001]) + compress(b"") + compress(CONTENT[50_001:])
    if suffix != "zst":
        content += b"\0" * 3000  # Padding, as tape and block devices leave it.
    else:
        content = b"\x50\x2a\x4d\x18\x05\0\0\0hello" + content  # A skippable frame.
    assert [line.content for line in lines_of(written(tmp_path, content, f"a.{suffix}"))] == RECORDS


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_truncated_stream_keeps_what_came_before(tmp_path: Path, suffix: str, share: float) -> None:
    content = COMPRESS[suffix](CONTENT)
    cut = min(int(len(content) * share), len(content) - 1)
    *good, broken = lines_of(written(tmp_path, content[:cut], f"a.{suffix}"))
    assert broken.reason == "truncated_stream"
    assert "everything after it is lost" in broken.detail
    assert [line.content for line in good] == RECORDS[: len(good)]
    assert broken.number == len(good) + 1
    assert len(good) >= (share - 0.1) * len(RECORDS)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_empty_compressed_file_is_truncated(tmp_path: Path, suffix: str) -> None:
    assert [line.reason for line in lines_of(written(tmp_path, b"", f"a.{suffix}"))] == ["truncated_stream"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_stream_is_reported(tmp_path: Path, suffix: str) -> None:
    content = bytearray(COMPRESS[suffix](CONTENT))
    content[-3] ^= 0x40  # In the checksum of the whole.
    lines = lines_of(written(tmp_path, bytes(content), f"a.{suffix}"))
    assert lines[-1].reason == "corrupt_stream"
    lines = lines_of(written(tmp_path, CONTENT, f"a.{suffix}"))
    assert [line.reason for line in lines] == ["corrupt_stream"]


# A frame that says it looks back 256 MiB, as `zstd --long=28` writes it; the descriptor of the window is byte 5.
LONG_WINDOW = bytes.fromhex("28b52ffd0090d90000") + b'{"text": "a valid record"}\n'


def test_zstd_windows_up_to_two_gigabytes_are_read(tmp_path: Path) -> None:
    for number, exponent in enumerate((27, 28, 31)):
        content = LONG_WINDOW[:5] + bytes([(exponent - 10) << 3]) + LONG_WINDOW[6:]
        lines = lines_of(written(tmp_path, content, f"{number}.jsonl.zst"))
        assert [line.content for line in lines] == [b'{"text": "a valid record"}'], exponent
    larger = LONG_WINDOW[:5] + bytes([(32 - 10) << 3]) + LONG_WINDOW[6:]
    (broken,) = lines_of(written(tmp_path, larger, "larger.jsonl.zst"))
    assert (broken.reason, "too much memory" in broken.detail) == ("corrupt_stream", True)


def test_a_text_is_not_taken_for_a_compressed_file(tmp_path: Path) -> None:
    for level in (1, 9):
        packed = InputStream(written(tmp_path, bz2.compress(CONTENT, level)))
        assert packed.compression == "bzip2"
        packed.close()
    assert [line.content for line in lines_of(written(tmp_path, b"BZh is a letter"))] == [b"BZh is a letter"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_pieces_are_bounded(tmp_path: Path, suffix: str) -> None:
    compress = bz2.compress if suffix == "bz2" else COMPRESS[suffix]
    stream = InputStream(written(tmp_path, compress(bytes(5 * 2**20)), f"a.{suffix}"))
    sizes = [len(piece) for piece in stream.pieces()]
    stream.close()
    assert (sum(sizes), max(sizes) <= 2**20) == (5 * 2**20, True)


@pytest.mark.parametrize("name", ["a.jsonl.lz4", "a.zip", "a.tar", "a.tar.gz"])
def test_other_compressions_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: \.\w+ files are not read; unpack it"):
        InputStream(written(tmp_path, b"content", name))
    InputStream(written(tmp_path, b"content", "a.br.jsonl")).close()  # A language, not a compression.


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compression_bomb_is_rejected_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    if suffix == "gz":
        bomb = gzip_bomb(b"", 400, b"")
    else:
        compressor = zstandard.ZstdCompressor(level=1).compressobj()
        bomb = b"".join(compressor.compress(bytes(2**20)) for _ in range(400)) + compressor.flush()
    assert len(bomb) < 500_000
    path = written(tmp_path, bomb, f"bomb.{suffix}")
    tracemalloc.start()
    try:
        lines = lines_of(path, 10_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(line.reason, line.number) for line in lines] == [("too_long", 1)]
    assert peak < 250_000_000


def test_a_line_of_a_gigabyte_needs_less_than_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"text": "good"}\n{"text": "')
        stream.truncate(2**30)  # A hole in the file: no disk is used.
        stream.seek(0, io.SEEK_END)
        stream.write(b'"}\n{"text": "good too"}\n')
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from data_tools.stages.tokenize_files import tokenize\n"
        "sidecar = tokenize([sys.argv[1]], sys.argv[2])\n"
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "print(sidecar.num_documents, dict(sidecar.rejected), peak)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "c")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    documents, *rejected, peak = result.stdout.split()
    assert (documents, " ".join(rejected)) == ("2", "{'too_long': 1}")
    assert int(peak) * 1024 < 512e6


def test_unreadable_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read: No such file"):
        InputStream(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="not a regular file"):
            InputStream(path)
