"""Several segments of a corpus at once: `verify`, `import-corpus` and `merge` find what one after the other finds."""

import errno
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
import pytest

from data_tools import _native
from data_tools.corpus import concatenation, token_scan
from data_tools.corpus.import_corpus import import_corpus
from data_tools.corpus.merge import merge
from data_tools.corpus.sidecar import Sidecar
from data_tools.corpus.token_scan import scan_tokens
from data_tools.corpus.verify import verify
from data_tools.errors import DataError
from data_tools.io import checksums
from data_tools.io.checksums import BLOCK_BYTES, StreamChecksums
from data_tools.io.progress import SilentProgress
from data_tools.io.threads import map_in_threads

END = 151643
SEGMENT = 4 * BLOCK_BYTES
WORKERS = (1, 2, 5)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of four blocks, read in pieces of one and a half, copied in pieces that end anywhere."""
    monkeypatch.setattr(StreamChecksums.__init__, "__defaults__", (BLOCK_BYTES, SEGMENT))
    assert scan_tokens.__kwdefaults__ is not None
    monkeypatch.setitem(scan_tokens.__kwdefaults__, "segment_bytes", SEGMENT)
    monkeypatch.setattr(checksums, "READ_BYTES", BLOCK_BYTES * 3 // 2)
    monkeypatch.setattr(concatenation, "READ_BYTES", BLOCK_BYTES * 3 // 2)
    monkeypatch.setattr(concatenation, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(concatenation, "_COPY_BYTES", 5000)


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., Path]:
    """A corpus of given lengths of documents, with ids from a generator."""

    def write(lengths: Sequence[int], name: str, block_bytes: int = BLOCK_BYTES) -> Path:
        prefix = tmp_path / name
        tokens = np.random.default_rng(len(lengths)).integers(0, END, sum(lengths), dtype=np.int32)
        tokens[np.cumsum(lengths) - 1] = END
        tokens.tofile(f"{prefix}.bin")
        _native.write_index(os.fsencode(f"{prefix}.idx"), np.array(lengths, dtype=np.int32), 4, 4)
        import_corpus(prefix)
        if block_bytes != BLOCK_BYTES:
            set_block_bytes(prefix, block_bytes)
        return prefix

    return write


def set_block_bytes(prefix: Path, block_bytes: int) -> None:
    content = Path(f"{prefix}.bin").read_bytes()
    sums = [zlib.crc32(content[start : start + block_bytes]) for start in range(0, len(content), block_bytes)]
    Path(f"{prefix}.crc").write_bytes(np.array(sums, dtype="<u4").tobytes())
    sidecar = orjson.loads(Path(f"{prefix}.json").read_bytes())
    path = Path(f"{prefix}.crc")
    sidecar |= {"crc": {"size_bytes": path.stat().st_size, "sha256": checksums.sha256_of_file(path)}}
    Path(f"{prefix}.json").write_bytes(orjson.dumps({**sidecar, "crc_block_bytes": block_bytes}))


def random_lengths(seed: int, num_tokens: int) -> list[int]:
    """Lengths of documents, several of which end with a segment."""
    generator = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        to_the_border = SEGMENT // 4 - sum(lengths) % (SEGMENT // 4)
        lengths.append(int(min(to_the_border, generator.integers(1, 1500))))
    return lengths


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))


def test_the_results_come_in_order_and_the_first_failure_ends_them() -> None:
    late = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert late.wait(10)
        elif item == 1:
            late.set()
        elif item >= 3:
            raise ValueError(str(item))
        return item

    results = map_in_threads(work, range(1000), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)
    assert list(map_in_threads(work, [], 2)) == []


@pytest.mark.parametrize("sizes", [[SEGMENT], [SEGMENT, 5], [SEGMENT, 2 * SEGMENT, 100], [3 * SEGMENT, SEGMENT]])
def test_joined_checksums_are_those_of_one_stream(sizes: list[int]) -> None:
    content = np.random.default_rng(1).bytes(sum(sizes))
    whole, joined = StreamChecksums(), StreamChecksums()
    whole.update(content)
    joined.update(content[: sizes[0]])
    start = sizes[0]
    for size in sizes[1:]:
        part = StreamChecksums()
        part.update(content[start : start + size])
        joined.append(part)
        start += size
    assert (joined.sha256(), joined.crc_bytes(), joined.size_bytes) == (whole.sha256(), whole.crc_bytes(), start)
    assert (joined.segment_bytes, joined.segment_digests()) == (whole.segment_bytes, whole.segment_digests())


def test_a_scan_finds_the_same_with_any_number_of_workers(write_corpus: Callable[..., Path]) -> None:
    """Documents without tokens, documents that end elsewhere, some of them on the border of two segments."""
    lengths = random_lengths(3, 7 * SEGMENT // 4)
    prefix = write_corpus(lengths, "corpus")
    ends = np.cumsum(lengths)
    borders = np.flatnonzero(ends % (SEGMENT // 4) == 0)
    assert len(borders) >= 7
    tokens = np.fromfile(f"{prefix}.bin", dtype=np.int32)
    unended = sorted({*borders[1::2].tolist(), 20, 21, len(ends) - 1})
    tokens[ends[unended] - 1] = 7
    tokens.tofile(f"{prefix}.bin")
    ends = np.sort(np.concatenate([ends, ends[borders], [0]]))
    is_empty = np.diff(ends, prepend=0) == 0
    expected = np.flatnonzero(~is_empty & (tokens[ends - 1] != END))
    assert len(expected) == len(unended)
    found = {}
    for workers in WORKERS:
        scan = scan_tokens(
            Path(f"{prefix}.bin"), np.dtype("<i4"), ends, END, END + 1, SilentProgress(), workers=workers
        )
        assert (scan.unended_documents, scan.first_unended) == (len(expected), int(expected[0]))
        found[workers] = (scan.checksums.sha256(), scan.checksums.crc_bytes())
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("workers", WORKERS)
def test_the_first_wrong_id_is_named(
    write_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    prefix = write_corpus([1000] * 40, "corpus")
    tokens = np.fromfile(f"{prefix}.bin", dtype=np.int32)
    tokens[[12345, 12346, 39998]] = END + 1000
    tokens.tofile(f"{prefix}.bin")
    monkeypatch.setattr("data_tools.corpus.import_corpus.usable_cores", lambda: workers)
    with pytest.raises(DataError, match=r"token 12345 \(document 12\) is 152643"):
        import_corpus(prefix, overwrite=True)


def test_damage_is_named_alike_by_any_number_of_workers(write_corpus: Callable[..., Path]) -> None:
    prefix = write_corpus(random_lengths(4, 9 * SEGMENT // 4), "corpus")
    assert [verify(prefix, workers=workers) for workers in WORKERS] == [Sidecar.read(prefix)] * 3
    for block in (1, 6, 7, 30):
        flip(Path(f"{prefix}.bin"), block * BLOCK_BYTES + 17)
    messages = set()
    for workers in WORKERS:
        with pytest.raises(DataError) as error:
            verify(prefix, workers=workers)
        messages.add(str(error.value))
    assert messages == {
        "\n".join(
            f"{prefix}.bin: block {block} (bytes {block * BLOCK_BYTES} to {(block + 1) * BLOCK_BYTES - 1}) is damaged"
            for block in (1, 6, 7, 30)
        )
    }


def test_a_file_cut_short_while_it_is_read(write_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_corpus([1000] * 40, "corpus")
    path = Path(f"{prefix}.bin")
    original = token_scan.StreamChecksums

    def cut_short(*arguments: object) -> StreamChecksums:
        os.truncate(path, 2 * SEGMENT + 40)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(token_scan, "StreamChecksums", cut_short)
    with pytest.raises(DataError, match=r"corpus\.bin: was cut short while it was read"):
        verify(prefix, workers=2)


@pytest.mark.parametrize("workers", WORKERS)
def test_merged_in_segments_is_merged_whole(write_corpus: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    """Inputs shorter and longer than a segment, blocks of both sizes, the same with any number of workers."""
    parts = [
        write_corpus(random_lengths(seed, num_tokens), f"part{seed}", block_bytes)
        for seed, num_tokens, block_bytes in (
            (5, 40000, BLOCK_BYTES),
            (6, 3, BLOCK_BYTES),
            (7, SEGMENT // 4, BLOCK_BYTES),
            (8, 70000, 16 * BLOCK_BYTES),
            (9, 1, 16 * BLOCK_BYTES),
            (10, 12345, BLOCK_BYTES),
        )
    ]
    content = b"".join(Path(f"{part}.bin").read_bytes() for part in parts)
    sidecar = merge(parts, tmp_path / "merged", workers=workers)
    assert Path(f"{tmp_path}/merged.bin").read_bytes() == content
    whole = StreamChecksums()
    whole.update(content)
    assert Path(f"{tmp_path}/merged.crc").read_bytes() == whole.crc_bytes()
    assert (sidecar.bin.sha256, sidecar.bin.segment_bytes) == (whole.sha256(), SEGMENT)
    assert verify(tmp_path / "merged") == sidecar


def test_damage_anywhere_in_an_input_is_found(write_corpus: Callable[..., Path], tmp_path: Path) -> None:
    parts = [
        write_corpus(random_lengths(seed, 20000), f"part{seed}", block_bytes)
        for seed, block_bytes in ((5, BLOCK_BYTES), (6, 16 * BLOCK_BYTES), (7, BLOCK_BYTES))
    ]
    generator = np.random.default_rng(1)
    for number, part in enumerate(parts):
        size = Path(f"{part}.bin").stat().st_size
        near_borders = [0, size - 1, SEGMENT - 1, SEGMENT, 3 * SEGMENT]
        for position in [*near_borders, *generator.integers(0, size, 8).tolist()]:
            flip(Path(f"{part}.bin"), position)
            with pytest.raises(DataError, match=rf"part{number + 5}\.bin: is damaged"):
                merge(parts, tmp_path / "merged", workers=2)
            flip(Path(f"{part}.bin"), position)
    flip(Path(f"{parts[2]}.crc"), 9)
    with pytest.raises(DataError, match=r"part7\.crc: is damaged"):
        merge(parts, tmp_path / "merged")
    flip(Path(f"{parts[2]}.crc"), 9)
    for number in (0, 2):
        flip(Path(f"{parts[number]}.bin"), 5)
    with pytest.raises(DataError, match=r"part5\.bin: is damaged"):
        merge(parts, tmp_path / "merged", workers=5)
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.parametrize("after", [0, 3, 40])
def test_a_copy_that_fails_ends_the_merge(
    write_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    parts = [write_corpus(random_lengths(seed, 30000), f"part{seed}") for seed in (5, 6)]
    original, calls = concatenation._copy_range, []

    def copy_range(source: BinaryIO, target: BinaryIO, count: int) -> int:
        calls.append(count)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(source, target, count)

    monkeypatch.setattr(concatenation, "_copy_range", copy_range)
    with pytest.raises(OSError, match="No space left") as error:
        merge(parts, tmp_path / "merged", workers=2)
    assert error.value.filename is not None
    assert not list(tmp_path.glob("*merged*"))


@pytest.mark.parametrize("change", [-4, 4])
def test_an_input_that_changes_meanwhile_is_refused(
    write_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    parts = [write_corpus(random_lengths(seed, 30000), f"part{seed}") for seed in (5, 6)]
    original = concatenation.sha256_of_file

    def changing(path: Path) -> str:
        bin_path = Path(f"{parts[1]}.bin")
        os.truncate(bin_path, Sidecar.read(parts[1]).bin.size_bytes + change)
        return original(path)

    monkeypatch.setattr(concatenation, "sha256_of_file", changing)
    with pytest.raises(DataError, match=r"part6\.bin: was changed meanwhile"):
        merge(parts, tmp_path / "merged", workers=2)
    assert not list(tmp_path.glob("*merged*"))


def test_a_damaged_index_ends_the_merge(write_corpus: Callable[..., Path], tmp_path: Path) -> None:
    parts = [write_corpus([1000] * 30, "one"), write_corpus([1000] * 30, "two")]
    flip(Path(f"{parts[1]}.idx"), 34 + 4 * 7)
    with pytest.raises(DataError, match=r"two\.idx: sequence 8 begins at byte"):
        merge(parts, tmp_path / "merged")
    assert not list(tmp_path.glob("*merged*"))


def test_the_copy_is_not_far_ahead_of_the_comparison(
    write_corpus: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [write_corpus(random_lengths(seed, 60000), f"part{seed}") for seed in (5, 6)]
    distances = []
    original = concatenation._Copy.advance

    def advance(self: concatenation._Copy, amount: int) -> None:
        distances.append(self._copied + amount - self._taken)
        original(self, amount)

    compared = concatenation._compared

    def slowly(*arguments: object) -> StreamChecksums:
        threading.Event().wait(0.01)
        return compared(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(concatenation._Copy, "advance", advance)
    monkeypatch.setattr(concatenation, "_compared", slowly)
    merge(parts, tmp_path / "merged", workers=1)
    assert SEGMENT < max(distances) <= 2 * SEGMENT + 5000
