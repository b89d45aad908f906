"""Checksums of segments: taken by several tasks, the same in one stream; corpora of earlier versions without them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from data_tools.corpus.merge import merge
from data_tools.corpus.reader import Corpus
from data_tools.corpus.verify import verify
from data_tools.errors import DataError
from data_tools.io import checksums
from data_tools.io.checksums import BLOCK_BYTES, StreamChecksums, read_pieces
from data_tools.stages import tokenize_gather

SEGMENT = 2 * BLOCK_BYTES
TEXTS = [f"document {number} " + "lorem ipsum " * (number % 70) for number in range(250)]


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of two blocks, two tasks, which end anywhere in ranges and documents."""
    monkeypatch.setattr(tokenize_gather, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(tokenize_gather, "_MOST_TASKS", 2)
    monkeypatch.setattr(StreamChecksums.__init__, "__defaults__", (BLOCK_BYTES, SEGMENT))


def root(content: bytes) -> str:
    digests = [hashlib.sha256(content[first : first + SEGMENT]).digest() for first in range(0, len(content), SEGMENT)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 3 * SEGMENT + 5])
@pytest.mark.parametrize("thread_bytes", [1, 10**6])
def test_any_pieces_give_the_root_of_the_segments(
    size: int, thread_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_THREAD_BYTES", thread_bytes)
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    is_segmented = size > SEGMENT
    for step in (SEGMENT, 1000, 2 * SEGMENT + 3):
        stream = StreamChecksums(BLOCK_BYTES, SEGMENT)
        for first in range(0, size, step):
            stream.update(content[first : first + step])
        assert stream.sha256() == (root(content) if is_segmented else hashlib.sha256(content).hexdigest())
        assert stream.segment_bytes == (SEGMENT if is_segmented else None)


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_take_them_and_put_the_ranges_together(
    make_corpus: Callable[..., Path], request: pytest.FixtureRequest, workers: int
) -> None:
    plain = make_corpus(TEXTS, "plain")
    request.getfixturevalue("segmented")
    prefix = make_corpus(TEXTS, "corpus", workers=workers)
    for suffix in ("bin", "idx", "crc"):
        assert Path(f"{prefix}.{suffix}").read_bytes() == Path(f"{plain}.{suffix}").read_bytes()
    content = Path(f"{prefix}.bin").read_bytes()
    assert len(content) > 5 * SEGMENT
    sidecar = verify(prefix)
    assert (sidecar.bin.segment_bytes, sidecar.bin.sha256) == (SEGMENT, root(content))
    assert Corpus.open(prefix).fingerprint == f"int32-sha256tree-{root(content)}"
    assert orjson.loads(Path(f"{prefix}.json").read_bytes())["version"] == 2
    assert merge([prefix], prefix.parent / "merged").fingerprint == sidecar.fingerprint


def test_corpora_of_earlier_versions_open_and_verify(
    make_corpus: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    prefix = make_corpus(TEXTS, "plain")
    request.getfixturevalue("segmented")
    sidecar = orjson.loads(Path(f"{prefix}.json").read_bytes())
    digest = hashlib.sha256(Path(f"{prefix}.bin").read_bytes()).hexdigest()
    assert (sidecar["version"], sidecar["bin"]) == (1, {"size_bytes": sidecar["bin"]["size_bytes"], "sha256": digest})
    # Larger than a segment, but no field says so: the SHA-256 is that of the whole.
    assert sidecar["bin"]["size_bytes"] > 5 * SEGMENT
    assert verify(prefix).fingerprint == f"int32-sha256-{digest}"
    content = bytearray(Path(f"{prefix}.bin").read_bytes())
    content[SEGMENT + 7] ^= 1
    Path(f"{prefix}.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"block 2 \(bytes 8192 to 12287\) is damaged"):
        verify(prefix)


@pytest.mark.usefixtures("segmented")
def test_a_wrong_root_and_a_wrong_field_are_named(make_corpus: Callable[..., Path]) -> None:
    prefix = make_corpus(TEXTS, "corpus")
    path = Path(f"{prefix}.json")
    good = orjson.loads(path.read_bytes())
    for segment, message in (
        (SEGMENT * 2, "corpus.bin: sha256 .* the sidecar says"),
        (5, "must be a multiple of 4096"),
    ):
        path.write_bytes(orjson.dumps({**good, "bin": {**good["bin"], "segment_bytes": segment}}))
        with pytest.raises(DataError, match=message):
            verify(prefix)
    path.write_bytes(orjson.dumps({**good, "idx": {**good["idx"], "segment_bytes": SEGMENT}}))
    with pytest.raises(DataError, match=r"field idx\.segment_bytes"):
        verify(prefix)


def test_part_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    assert b"".join(read_pieces(path, 20, 50)) == bytes(range(20, 50))
    assert b"".join(read_pieces(path, 20)) == bytes(range(20, 200))
