"""The index of documents: what contradicts itself is refused, with the file's name."""

import struct
from pathlib import Path
from typing import Any

import pytest

from data_tools.corpus.index import CorpusIndex
from data_tools.errors import DataError

HEADER = struct.Struct("<9sQBQQ")


def index_bytes(
    lengths: list[int], offsets: list[int], documents: list[int], code: int = 4, version: int = 1, **header: Any
) -> bytes:
    return (
        HEADER.pack(
            header.get("magic", b"MMIDIDX\0\0"),
            version,
            code,
            header.get("sequences", len(lengths)),
            header.get("entries", len(documents)),
        )
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(offsets)}q", *offsets)
        + struct.pack(f"<{len(documents)}q", *documents)
    )


GOOD: tuple[list[int], list[int], list[int]] = ([2, 3], [0, 8], [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes is too short for an index"),
        (index_bytes(*GOOD)[:33], "33 bytes is too short"),
        (index_bytes(*GOOD)[:-1], "the file is truncated or damaged"),
        (index_bytes(*GOOD) + b"\0" * 5, "truncated or damaged"),
        (index_bytes(*GOOD, magic=b"TNTIDX\0\0\0"), "not a Megatron index"),
        (index_bytes(*GOOD, version=2), "not a Megatron index: it begins .* version 2"),
        (index_bytes(*GOOD, code=7), r"dtype code 7 \(float32\) is not an integer type"),
        (index_bytes(*GOOD, code=77), r"dtype code 77 \(unknown\)"),
        (index_bytes(*GOOD, sequences=2**63), "9223372036854775808 sequences .* truncated or damaged"),
        (index_bytes(*GOOD, entries=2**64 - 1), "18446744073709551615 document entries"),
        (index_bytes([2, 3], [0, 8], []), "truncated or damaged"),
        (index_bytes([2, 3], [0, 8], [1, 1, 2]), "documents cover sequences 1 to 2, but there are 2"),
        (index_bytes([2, 3], [0, 8], [0, 1, 3]), "documents cover sequences 0 to 3, but there are 2"),
        (index_bytes([2, 3], [4, 8], [0, 1, 2]), "sequences begin at byte 4"),
        (index_bytes([2, 3], [0, -80], [0, 1, 2]), "end at byte -68"),
        (index_bytes([2, 3], [0, 9], [0, 1, 2]), "end at byte 21; they must begin at 0 and end on a token of 4 bytes"),
    ],
)
def test_broken_index_is_refused_at_opening(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.idx").write_bytes(content)
    with pytest.raises(DataError, match=rf"c\.idx: .*{message}"):
        CorpusIndex.open(tmp_path / "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (index_bytes([2, -3, 3], [0, 8, -4], [0, 1, 2, 3]), "sequence 1 has length -3"),
        (
            index_bytes([2, 3, 3], [0, 12, 20], [0, 1, 2, 3]),
            "sequence 1 begins at byte 12 but the ones before it end at 8",
        ),
        (index_bytes([2, 3, 3], [0, 8, 20], [0, 2, 1, 3]), "document 1 ends before it begins"),
    ],
)
def test_validate_reads_all_of_the_index(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.idx").write_bytes(content)
    index = CorpusIndex.open(tmp_path / "c")
    with pytest.raises(DataError, match=rf"c\.idx: {message}"):
        index.validate()


def test_documents_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "c.idx").write_bytes(index_bytes([2, 3, 0, 4], [0, 8, 20, 20], [0, 2, 2, 4]))
    index = CorpusIndex.open(tmp_path / "c")
    index.validate()
    assert [index.document(number) for number in range(3)] == [(0, 5), (5, 0), (5, 4)]
    assert index.document_ends().tolist() == [5, 5, 9]
    assert index.document_lengths().tolist() == [5, 0, 4]
    for number in (-1, 3):
        with pytest.raises(DataError, match=rf"c\.idx: document {number} does not exist, there are 3"):
            index.document(number)


@pytest.mark.parametrize(
    ("offsets", "documents"),
    [([0, 80, 20], [0, 1, 2, 3]), ([0, -8, 20], [0, 1, 2, 3]), ([0, 8, 20], [0, 2, 1, 3]), ([0, 8, 20], [0, 9, 1, 3])],
)
def test_contradictions_show_when_a_document_is_read(tmp_path: Path, offsets: list[int], documents: list[int]) -> None:
    (tmp_path / "c.idx").write_bytes(index_bytes([2, 3, 3], offsets, documents))
    index = CorpusIndex.open(tmp_path / "c")
    with pytest.raises(DataError, match=r"c\.idx: document \d has"):
        [index.document(number) for number in range(3)]
