"""Each C++ kernel against plain Python."""

import errno
import re
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _native
from tests.support.disks import full_disk


def gather_in_python(
    spool: list[int], starts: list[int], lengths: list[int], order: list[int], end_of_document: int
) -> list[int]:
    out = []
    for document in order:
        out += spool[starts[document] : starts[document] + lengths[document]]
        out.append(end_of_document)
    return out


def index_in_python(lengths: list[int], dtype_code: int, itemsize: int) -> bytes:
    offsets = [sum(lengths[:number]) * itemsize for number in range(len(lengths))]
    return b"".join(
        [
            b"MMIDIDX\x00\x00",
            struct.pack("<QBQQ", 1, dtype_code, len(lengths), len(lengths) + 1),
            struct.pack(f"<{len(lengths)}i", *lengths),
            struct.pack(f"<{len(lengths)}q", *offsets),
            struct.pack(f"<{len(lengths) + 1}q", *range(len(lengths) + 1)),
        ]
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), max_size=20), st.randoms(use_true_random=False))
def test_gather_equals_python(documents: list[list[int]], random: object) -> None:
    spool = [token for document in documents for token in document]
    cut = random.randint(0, len(documents))  # type: ignore[attr-defined]
    spools = [[token for document in some for token in document] for some in (documents[:cut], [], documents[cut:])]
    lengths = [len(document) for document in documents]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    order = list(range(len(documents)))
    random.shuffle(order)  # type: ignore[attr-defined]
    out = np.full(len(spool) + len(documents) + 3, -7, dtype=np.int32)
    written = _native.gather_documents(
        [np.array(some, dtype=np.int32) for some in spools],
        np.array(starts, dtype=np.int64),
        np.array(lengths, dtype=np.int32),
        np.array(order, dtype=np.int64),
        151643,
        out,
    )
    assert out[:written].tolist() == gather_in_python(spool, starts, lengths, order, 151643)
    assert out[written:].tolist() == [-7, -7, -7]


@pytest.mark.parametrize(
    ("start", "length", "order", "room", "message"),
    [
        (0, 5, 1, 9, "order names document 1 of 1"),
        (0, 5, -1, 9, "order names document -1 of 1"),
        (0, 6, 0, 9, "start 0 and length 6 leaves its spool, 5 tokens in 1 spools"),
        (5, 1, 0, 9, "leaves its spool"),
        (-1, 1, 0, 9, "leaves its spool"),
        (0, -1, 0, 9, "leaves its spool"),
        (2**62, 1, 0, 9, "leaves its spool"),
        (0, 5, 0, 5, "6 tokens do not fit into 5"),
    ],
)
def test_gather_refuses_to_leave_its_arrays(start: int, length: int, order: int, room: int, message: str) -> None:
    out = np.full(room, -7, dtype=np.int32)
    with pytest.raises(IndexError, match=message):
        _native.gather_documents(
            [np.arange(5, dtype=np.int32)],
            np.array([start], dtype=np.int64),
            np.array([length], dtype=np.int32),
            np.array([order], dtype=np.int64),
            0,
            out,
        )
    assert (out == -7).all()


def test_gather_refuses_a_document_that_lies_in_two_spools() -> None:
    spools = [np.arange(2, dtype=np.int32), np.arange(3, dtype=np.int32)]
    arguments = np.array([1], dtype=np.int64), np.array([2], dtype=np.int32), np.zeros(1, dtype=np.int64)
    with pytest.raises(IndexError, match="start 1 and length 2 leaves its spool, 5 tokens in 2 spools"):
        _native.gather_documents(spools, *arguments, 0, np.zeros(9, dtype=np.int32))


@given(st.binary(max_size=100), st.integers(0, 60))
def test_line_ends_are_counted(piece: bytes, times: int) -> None:
    assert _native.count_line_ends(piece * times) == (piece * times).count(b"\n")


def test_gather_takes_no_other_types() -> None:
    int64 = np.zeros(2, dtype=np.int64)
    with pytest.raises(TypeError):
        _native.gather_documents([int64], int64, int64, int64, 0, int64)  # type: ignore[arg-type,list-item]
    int32 = np.zeros((2, 2), dtype=np.int32)
    with pytest.raises(ValueError, match="spool must have one dimension"):
        _native.gather_documents([int32], int64, int32[0], int64, 0, int32[1])


@pytest.mark.parametrize("lengths", [[], [5], [1, 2, 3, 2**31 - 1, 0, 7]])
@pytest.mark.parametrize(("dtype_code", "itemsize"), [(4, 4), (8, 2), (5, 8)])
def test_index_equals_python(tmp_path: Path, lengths: list[int], dtype_code: int, itemsize: int) -> None:
    path = tmp_path / "c.idx"
    _native.write_index(str(path).encode(), np.array(lengths, dtype=np.int32), dtype_code, itemsize)
    assert path.read_bytes() == index_in_python(lengths, dtype_code, itemsize)
    assert path.stat().st_size == 42 + 20 * len(lengths)
    assert list(tmp_path.iterdir()) == [path]


def test_index_larger_than_the_buffer(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(0, 1000, 100_000).astype(np.int32)
    path = tmp_path / "c.idx"
    _native.write_index(str(path).encode(), lengths, 4, 4)
    content = path.read_bytes()
    assert np.array_equal(np.frombuffer(content, "<i4", len(lengths), 34), lengths)
    offsets = np.frombuffer(content, "<i8", len(lengths), 34 + 4 * len(lengths))
    assert np.array_equal(offsets, 4 * (np.cumsum(lengths, dtype=np.int64) - lengths))


def test_index_errors_name_the_file_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        _native.write_index(str(tmp_path / "no" / "c.idx").encode(), np.zeros(1, dtype=np.int32), 4, 4)
    assert raised.value.errno == errno.ENOENT
    assert raised.value.filename == str(tmp_path / "no" / "c.idx.tmp")
    with pytest.raises(ValueError, match="negative length -3"):
        _native.write_index(str(tmp_path / "c.idx").encode(), np.array([-3], dtype=np.int32), 4, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    signal_action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with full_disk(1_500_000), pytest.raises(OSError, match="File too large") as raised:
            _native.write_index(str(tmp_path / "c.idx").encode(), np.zeros(100_000, dtype=np.int32), 4, 4)
    finally:
        signal.signal(signal.SIGXFSZ, signal_action)
    assert raised.value.filename == str(tmp_path / "c.idx.tmp")
    assert list(tmp_path.iterdir()) == []


JSON_TEXT = st.lists(st.sampled_from(['"', "\\", "a", "bc", "{", ":", "é"]), max_size=40).map("".join)


@given(JSON_TEXT, st.integers(0, 4))
def test_json_strings_against_a_regular_expression(text: str, min_bytes: int) -> None:
    content = text.encode()
    # A backslash at the very end escapes nothing.
    found = [match.span(1) for match in re.finditer(rb'"((?:[^"\\]|\\(?s:.)|\\\Z)*)(?:"|\Z)', content)]
    expected = [(start, stop) for start, stop in found if stop - start >= min_bytes]
    for form in (content, bytearray(content)):
        assert _native.json_strings(form, min_bytes) == expected


@given(
    st.lists(st.binary(max_size=700), max_size=6),
    st.sampled_from([1, 16, 63, 64, 80, 256, 4096]),
    st.booleans(),
)
@settings(deadline=None)
def test_block_crcs_are_those_of_zlib(pieces: list[bytes], block_bytes: int, portable: bool) -> None:
    content = b"".join(pieces)
    found: list[int] = []
    open_crc = open_bytes = 0
    for piece in pieces:
        ended, open_crc, open_bytes = _native.block_crcs(
            np.frombuffer(piece, dtype=np.uint8), block_bytes, open_crc, open_bytes, portable
        )
        found += ended.tolist()
    whole = len(content) // block_bytes * block_bytes
    assert found == [zlib.crc32(content[first : first + block_bytes]) for first in range(0, whole, block_bytes)]
    assert (open_crc, open_bytes) == (zlib.crc32(content[whole:]), len(content) - whole)


def test_block_crcs_of_long_blocks() -> None:
    content = np.random.default_rng(1).integers(0, 256, 300_001, dtype=np.uint8)
    for portable in (False, True):
        ended, open_crc, open_bytes = _native.block_crcs(content, 65536, 0, 0, portable)
        assert ended.tolist() == [zlib.crc32(content[first : first + 65536]) for first in range(0, 4 * 65536, 65536)]
        assert (open_crc, open_bytes) == (zlib.crc32(content[4 * 65536 :]), 300_001 - 4 * 65536)
    with pytest.raises(ValueError, match="open_bytes=4 must be below block_bytes=4"):
        _native.block_crcs(content, 4, 0, 4)
    with pytest.raises(TypeError):
        _native.block_crcs(content.view(np.int8), 4096, 0, 0)
