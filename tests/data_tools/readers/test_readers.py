"""Readers: every format, every bad record, any cut of a file."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from data_tools.engine.planning import plan_parts
from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.readers.files import check_unchanged, find_files
from data_tools.readers.formats import format_of, reader_of
from data_tools.readers.jsonl import MAX_DOCUMENT_BYTES
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions, Record

# Rows 20 to 22 of the project's list of faults: content, reason.
BAD_LINES = {
    "broken": (b'{"text": "a', "not_json"),
    "not an object": (b'["a"]', "not_an_object"),
    "wrong type": (b'{"text": 5}', "text_not_string"),
    "NaN": (b'{"text": "a", "score": NaN}', "not_json"),
    "nesting": (b'{"text": ' + b"[" * 100_000, "not_json"),
    "lone surrogate": (b'{"text": "\\ud800"}', "lone_surrogate"),
    "invalid UTF-8": (b'{"text": "\xc3\x28"}', "invalid_utf8"),
    "empty": (b'{"text": ""}', "empty"),
    "no text": (b'{"content": "a"}', "missing_text"),
    "too long": (b'{"text": "' + b"x" * 300_000 + b'"}', "too_long"),
}
GOOD = ["first", "NUL \x00 inside", "<|endoftext|>", "line\r\nend", "  ", "末"]


def read(
    parts: Sequence[FileRange], file_format: str, **options: Any
) -> tuple[list[Record], list[BadRecord], list[int]]:
    read_options = ReadOptions(**{"text_key": "text", "max_document_bytes": 200_000, **options})
    good: list[Record] = []
    bad: list[BadRecord] = []
    counts = []
    for part in parts:
        count = RangeCount()
        base = sum(counts)
        for record in reader_of(file_format)(part, read_options, count):
            if isinstance(record, BadRecord):
                bad.append(record._replace(line=record.line + base))
            else:
                good.append(record._replace(line=record.line + base))
        counts.append(count.lines)
    return good, bad, counts


def mixed_lines() -> list[bytes]:
    """Good and bad lines in turn, then blank ones and one without a line end."""
    lines = [b"\xef\xbb\xbf" + orjson.dumps({"text": "BOM"}) + b"\r"]
    for number, (line, _) in enumerate(BAD_LINES.values()):
        lines += [orjson.dumps({"text": GOOD[number % len(GOOD)]}), line]
    return [*lines, b"", b"  ", orjson.dumps({"text": "last", "url": "u"})]


def test_any_cut_gives_the_same_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(mixed_lines()))
    (whole,) = find_files(str(path))
    good, bad, _ = read([whole], "jsonl")
    assert [record.text for record in good] == ["BOM", *(GOOD[n % len(GOOD)] for n in range(len(BAD_LINES))), "last"]
    assert [record.reason for record in bad] == [reason for _, reason in BAD_LINES.values()]
    assert [record.line for record in bad] == [2 * number + 3 for number in range(len(BAD_LINES))]
    content = path.read_bytes()
    assert all(content[record.place :].lstrip(b"\xef\xbb\xbf").startswith(b'{"text":') for record in good)
    for split_bytes in (1, 2, 7, 50, 399, 40_000, 100_000, 150_000, 10**9):
        if split_bytes < 50:
            short = tmp_path / "short.jsonl"
            short.write_bytes(b"\n".join(line for line in mixed_lines() if len(line) < 1000))
            (file,) = find_files(str(short))
            expected = read([file], "jsonl")[:2]
        else:
            file, expected = whole, (good, bad)
        parts = [one for group in plan_parts([file], "jsonl", split_bytes) for one in group]
        assert read(parts, "jsonl")[:2] == expected, split_bytes


def test_compressed_files_are_read_whole_and_a_break_costs_the_rest(tmp_path: Path) -> None:
    content = b"".join(orjson.dumps({"text": f"document {number}"}) + b"\n" for number in range(5000))
    for name, packed in (("a.jsonl.gz", gzip.compress(content)), ("a.jsonl.zst", zstandard.compress(content))):
        path = tmp_path / name
        path.write_bytes(packed)
        (file,) = find_files(str(path))
        assert format_of(str(path)) == "jsonl"
        assert plan_parts([file], "jsonl", split_bytes=10) == [[file]]
        good, bad, counts = read([file], "jsonl")
        assert (len(good), bad, counts) == (5000, [], [5000])
        path.write_bytes(packed[: len(packed) // 2])
        good, bad, _ = read(find_files(str(path)), "jsonl")
        assert [record.reason for record in bad] == ["truncated_stream"]
        assert [record.text for record in good] == [f"document {number}" for number in range(len(good))]
    disguised = tmp_path / "b.jsonl"  # Compressed, but the name does not say so.
    disguised.write_bytes(gzip.compress(content))
    assert len(plan_parts(find_files(str(disguised)), "jsonl", split_bytes=10)) == 1


def test_a_compression_bomb_is_rejected_in_bounded_memory(tmp_path: Path) -> None:
    import psutil  # type: ignore[import-untyped]

    path = tmp_path / "bomb.jsonl.zst"
    compressor = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as stream:
        stream.write(compressor.compress(b'{"text": "'))
        for _ in range(600):
            stream.write(compressor.compress(b"x" * 2**20))
        stream.write(compressor.compress(b'"}\n{"text": "after"}\n') + compressor.flush())
    before = psutil.Process().memory_info().rss
    good, bad, _ = read(find_files(str(path)), "jsonl", max_document_bytes=2**20)
    assert psutil.Process().memory_info().rss - before < 200 * 2**20
    assert [record.text for record in good] == ["after"]
    assert [(record.line, record.reason) for record in bad] == [(1, "too_long")]


def test_text_trees(tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    contents = {"a.txt": b"one", "deep/b.md": b"\xef\xbb\xbftwo\n", "c.txt": b"\xff", "d.txt": b"", "e.txt": b"x" * 999}
    for name, content in contents.items():
        (tmp_path / "tree" / name).write_bytes(content)
    files = find_files(str(tmp_path / "tree"))
    assert [Path(file.path).name for file in files] == ["a.txt", "c.txt", "d.txt", "b.md", "e.txt"]
    good, bad, _ = read(files, "text", max_document_bytes=500)
    assert [record.text for record in good] == ["one", "two\n"]
    assert [record.reason for record in bad] == ["invalid_utf8", "empty", "too_long"]


def test_parquet_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    texts = pa.array(["one", None, "", "two", "x" * 900])
    pq.write_table(pa.table({"text": texts, "url": ["u0", "u1", "u2", "u3", "u4"]}), path)
    good, bad, _ = read(find_files(str(path)), format_of(str(path)), keep=("url",), max_document_bytes=500)
    assert [(record.place, record.text, record.fields) for record in good] == [
        (0, "one", {"url": "u0"}),
        (3, "two", {"url": "u3"}),
    ]
    assert [(record.line, record.reason) for record in bad] == [(1, "text_not_string"), (2, "empty"), (4, "too_long")]
    good, bad, _ = read(find_files(str(path)), "parquet", text_key="body")
    assert (good, [record.reason for record in bad]) == ([], ["missing_text"])
    invalid = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pa.py_buffer(b"\xffok")]
    )
    pq.write_table(pa.table({"text": invalid}), path)
    good, bad, _ = read(find_files(str(path)), "parquet")
    assert ([record.text for record in good], [(record.line, record.reason) for record in bad]) == (
        ["ok"],
        [(0, "invalid_utf8")],
    )
    path.write_bytes(path.read_bytes()[:-20])
    good, bad, _ = read(find_files(str(path)), "parquet")
    assert (good, [record.reason for record in bad]) == ([], ["corrupt_stream"])


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "fixed"])
def test_a_parquet_column_of_bytes_is_text_where_it_is_utf8(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "binary": pa.binary(),
        "large_binary": pa.large_binary(),
        "binary_view": pa.binary_view(),
        "fixed": pa.binary(7),
    }
    texts = [b"plain x", "caf\u00e9 zh".encode()[:7], b"\xff\xfe abcd"[:7], None]
    path = tmp_path / "bytes.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, types[kind])}), path)
    good, bad, _ = read(find_files(str(path)), "parquet")
    assert [record.text for record in good] == ["plain x", "caf\u00e9 z"]
    assert [(record.line, record.reason) for record in bad] == [(2, "invalid_utf8"), (3, "text_not_string")]


def test_every_parquet_value_can_be_kept(tmp_path: Path) -> None:
    """What JSON has no form for ended the run with a TypeError."""
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.date(2024, 2, 29)
    moment = datetime.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=datetime.UTC)
    values: dict[str, tuple[Any, Any, Any]] = {
        "decimal": (pa.decimal128(5, 2), decimal.Decimal("9.90"), "9.90"),
        "bytes": (pa.binary(), b"ab\xc3\xa9", "ab\u00e9"),
        "no_text": (pa.binary(), b"\xff\x00", "/wA="),
        "duration": (pa.duration("us"), datetime.timedelta(seconds=90, microseconds=5), 90.000005),
        "duration_ns": (pa.duration("ns"), 1_500_000_000, 1.5),
        "date": (pa.date32(), day, "2024-02-29"),
        "time": (pa.time64("us"), datetime.time(1, 2, 3), "01:02:03"),
        "moment": (pa.timestamp("us", "UTC"), moment, "2024-02-29T12:30:01.000005+00:00"),
        "struct": (pa.struct({"a": pa.decimal128(3, 1)}), {"a": decimal.Decimal("1.5")}, {"a": "1.5"}),
        "list": (pa.list_(pa.binary()), [b"x", None], ["x", None]),
        "map": (pa.map_(pa.string(), pa.int64()), [("k", 1)], [["k", 1]]),
        "numbers": (pa.list_(pa.float64()), [0.5, 2.0], [0.5, 2.0]),
        "largest": (pa.uint64(), 2**64 - 1, 2**64 - 1),
        "null": (pa.null(), None, None),
        "yes": (pa.bool_(), True, True),
    }
    columns = {name: pa.array([value], kind) for name, (kind, value, _) in values.items()}
    path = tmp_path / "values.parquet"
    pq.write_table(pa.table({"text": ["hello"], **columns}), path)
    (record,), bad, _ = read(find_files(str(path)), "parquet", keep=tuple(values))
    assert bad == []
    assert orjson.loads(orjson.dumps(record.fields)) == {name: expected for name, (_, _, expected) in values.items()}
    moments = pa.array([1_709_209_801_123_456_789], pa.timestamp("ns"))
    invalid = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    nested = pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1], invalid)], ["a"])
    pq.write_table(pa.table({"text": ["hello"], "moment": moments, "nested": nested}), path)
    (record,), _, _ = read(find_files(str(path)), "parquet", keep=("moment", "nested"))
    assert str(record.fields["moment"]).startswith("2024-02-29")
    assert record.fields["nested"] == {"a": ["/w=="]}


def test_formats_refuse_what_their_readers_cannot_unpack() -> None:
    assert [format_of(f"a.jsonl.{suffix}") for suffix in ("gz", "zst", "bz2", "xz")] == ["jsonl"] * 4
    assert [format_of(f"a.warc.{suffix}") for suffix in ("gz", "zst", "bz2", "xz")] == ["warc"] * 4
    # A text tree may hold anything; such a file is one bad document of it.
    assert [format_of(name) for name in ("a.zip", "a.txt.lz4")] == ["text"] * 2
    for name in ("a.jsonl.lz4", "a.warc.lz4", "a.parquet.gz"):
        with pytest.raises(DataError, match=rf"{name}: .*not read.*; unpack it"):
            format_of(name)


def test_files_behind_urls() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/b.jsonl", b'{"text": "b"}\n' * 10)
    memory.pipe("/corpus/a.jsonl.gz", gzip.compress(b'{"text": "a"}\n'))
    files = find_files("memory://corpus/*")
    assert [file.path.rsplit("/", 1)[1] for file in files] == ["a.jsonl.gz", "b.jsonl"]
    parts = [one for group in plan_parts(files, "jsonl", split_bytes=50) for one in group]
    assert len(parts) == 4
    good, bad, _ = read(parts, "jsonl")
    assert ([record.text for record in good], bad) == (["a", *["b"] * 10], [])
    check_unchanged(files[1])
    memory.pipe("/corpus/b.jsonl", b"{}")
    with pytest.raises(DataError, match=r"b\.jsonl: changed while it was read"):
        check_unchanged(files[1])


def test_small_files_are_put_together_and_every_file_is_covered_once(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.jsonl").write_bytes(b"x" * (1000 if number == 7 else 30))
    parts = plan_parts(find_files(f"{tmp_path}/*.jsonl"), "jsonl", split_bytes=100)
    covered: dict[str, list[tuple[int, int]]] = {}
    for part in parts:
        assert len(part) == 1 or sum(one.size_bytes for one in part) <= 100
        for one in part:
            stop = one.size_bytes if one.stop is None else one.stop
            covered.setdefault(Path(one.path).name, []).append((one.start, stop))
    assert len(parts) == 10 + 3 + 4
    for name, ranges in covered.items():
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == (tmp_path / name).stat().st_size


def test_no_such_file() -> None:
    with pytest.raises(DataError, match=r"no such file; check the path"):
        find_files("/nowhere/*.jsonl")
    with pytest.raises(DataError, match="nosuch://bucket/file"):
        find_files("nosuch://bucket/file")
    assert MAX_DOCUMENT_BYTES == 256 * 2**20
