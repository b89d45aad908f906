"""Opening and reading a corpus: damage is refused, with the file's name, before a wrong token is returned."""

import hashlib
import multiprocessing
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.corpus import reader as corpus_module
from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.merge import merge
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import Sidecar
from data_tools.corpus.verify import verify
from data_tools.errors import DataError
from data_tools.io.checksums import BLOCK_BYTES, StreamChecksums
from data_tools.stages.tokenize_files import tokenize

# Larger than a few blocks, with a short last one.
LARGE = [f"{number} " * 300 for number in range(120)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "corpus.jsonl").write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in LARGE))
    tokenize([folder / "corpus.jsonl"], folder / "corpus")
    size = (folder / "corpus.bin").stat().st_size
    assert size > 3 * BLOCK_BYTES
    assert size % BLOCK_BYTES
    return folder


@pytest.fixture
def large(original: Path, tmp_path: Path) -> Path:
    """A corpus that the test may damage."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path / "corpus"


def all_tokens(prefix: Path) -> np.ndarray:
    return np.fromfile(f"{prefix}.bin", dtype="<i4").astype(np.int64)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def edit_sidecar(prefix: Path, **changes: Any) -> None:
    path = Path(f"{prefix}.json")
    document = orjson.loads(path.read_bytes())
    document.update(changes)
    path.write_bytes(orjson.dumps({key: value for key, value in document.items() if value != "DELETE"}))


def test_tokens_of_any_range(large: Path) -> None:
    expected = all_tokens(large)
    for verify_blocks in (True, False):
        corpus = Corpus.open(large, verify_blocks=verify_blocks)
        assert corpus.num_tokens == len(expected)
        assert (corpus.num_documents, corpus.end_of_document) == (len(LARGE), 151643)
        per_block = BLOCK_BYTES // 4
        for start, count in [(0, 1), (per_block - 1, 2), (5, 3 * per_block), (len(expected) - 1, 1), (7, 0)]:
            tokens = corpus.tokens(start, count)
            assert tokens.dtype == np.int64
            assert np.array_equal(tokens, expected[start : start + count])
        assert np.array_equal(corpus.tokens(0, len(expected)), expected)


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, -1), (0, 10**12), (10**12, 1)])
def test_ranges_outside_are_refused(large: Path, start: int, count: int) -> None:
    corpus = Corpus.open(large)
    with pytest.raises(DataError, match=rf"corpus\.bin: tokens \[{start}, .* out of range, the corpus has"):
        corpus.tokens(start, count)
    with pytest.raises(DataError, match="out of range"):
        corpus.tokens(corpus.num_tokens, 1)


def test_opening_reads_neither_index_nor_tokens(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"{large}.idx").unlink()

    def fail(*arguments: int) -> bytes:
        raise AssertionError("a token was read")

    monkeypatch.setattr(os, "pread", fail)
    assert Corpus.open(large).num_documents == len(LARGE)


def test_each_block_is_verified_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []

    def crc32(data: memoryview) -> int:
        verified.append(len(data))
        return zlib.crc32(data)

    monkeypatch.setattr(corpus_module, "zlib", SimpleNamespace(crc32=crc32))
    corpus = Corpus.open(large)
    corpus.tokens(0, 10)
    assert verified == [BLOCK_BYTES]
    corpus.tokens(5, 10)
    assert verified == [BLOCK_BYTES]
    corpus.tokens(0, corpus.num_tokens)
    assert sum(verified) == Path(f"{large}.bin").stat().st_size
    Corpus.open(large, verify_blocks=False).tokens(0, corpus.num_tokens)
    assert sum(verified) == Path(f"{large}.bin").stat().st_size


@pytest.mark.parametrize("block", [0, 2, -1])
def test_flipped_byte_is_found_at_the_first_read_of_its_block(large: Path, block: int) -> None:
    path = Path(f"{large}.bin")
    size = path.stat().st_size
    blocks = -(-size // BLOCK_BYTES)
    block %= blocks
    position = min(block * BLOCK_BYTES + 777, size - 1)
    flip(path, position)
    corpus = Corpus.open(large)
    other = (block + 1) % blocks
    corpus.tokens(other * BLOCK_BYTES // 4, 5)
    last = min((block + 1) * BLOCK_BYTES, size) - 1
    message = rf"corpus\.bin: block {block} \(bytes {block * BLOCK_BYTES} to {last}\) has CRC-32"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            corpus.tokens(position // 4, 1)
    with pytest.raises(DataError, match=rf"corpus\.bin: block {block} \(bytes .*\) is damaged"):
        verify(large)


def test_truncated_or_extended_files_are_refused_at_opening(large: Path) -> None:
    for suffix in ("bin", "crc"):
        path = Path(f"{large}.{suffix}")
        content = path.read_bytes()
        for changed in (content[: len(content) // 2], content + b"\0\0\0\0", b""):
            path.write_bytes(changed)
            with pytest.raises(DataError, match=rf"corpus\.{suffix}: {len(changed)} bytes, but .* {len(content)};"):
                Corpus.open(large)
        path.unlink()
        with pytest.raises(DataError, match=rf"corpus\.{suffix}: missing"):
            Corpus.open(large)
        path.write_bytes(content)
    Corpus.open(large)


def test_truncation_while_open_is_an_error_not_a_crash(large: Path) -> None:
    for verify_blocks in (True, False):
        corpus = Corpus.open(large, verify_blocks=verify_blocks)
        content = Path(f"{large}.bin").read_bytes()
        with Path(f"{large}.bin").open("r+b") as stream:
            stream.truncate(100)
        with pytest.raises(DataError, match=r"corpus\.bin: ends at byte 100, it was truncated while it was open"):
            corpus.tokens(0, 1000)
        Path(f"{large}.bin").write_bytes(content)


def test_missing_sidecar_names_the_way_out(large: Path, tmp_path: Path) -> None:
    Path(f"{large}.json").unlink()
    with pytest.raises(DataError, match=r"corpus\.json: missing.*run: qwen-data import-corpus .*corpus"):
        Corpus.open(large)
    with pytest.raises(DataError, match=r"none\.json: no corpus there; make one with: qwen-data tokenize"):
        Corpus.open(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 3 of the format is neither 1 nor 2"),
        ({"format": "other"}, "field format must be 'qwen-megatron-corpus', found 'other'"),
        ({"num_tokens": "many"}, "field num_tokens must be an integer, found 'many'"),
        ({"num_tokens": True}, "field num_tokens must be an integer, found True"),
        ({"num_documents": -1}, "field num_documents must not be negative, found -1"),
        ({"num_documents": "DELETE"}, "field num_documents is missing"),
        ({"num_tokens": 10**15}, "field bin.size_bytes must be 4000000000000000 for num_tokens=1000000000000000"),
        ({"records_in": 5}, "field records_in must be num_documents plus all rejected = 120, found 5"),
        ({"dtype": "float32"}, "field dtype must be one of uint8, .*found 'float32'"),
        ({"tokenizer": 7}, "field tokenizer must be a string or null, found 7"),
        ({"bin": 7}, "field bin must be an object, found 7"),
        ({"idx": {"size_bytes": 1, "sha256": "xyz"}}, "field idx.sha256 must be 64 hexadecimal digits"),
        ({"crc": {"size_bytes": 1, "sha256": "0" * 64}}, "field crc.size_bytes must be"),
        ({"inputs": [{"path": "a", "size_bytes": 1}]}, r"field inputs\[0\]\.mtime_ns is missing"),
        ({"rejected": {"empty": -1}}, "field rejected.empty must not be negative"),
        ({"rejected": {"empty": 1.5}}, "field rejected.empty must be an integer"),
    ],
)
def test_wrong_sidecar_names_the_field(large: Path, changes: dict[str, Any], message: str) -> None:
    edit_sidecar(large, **changes)
    with pytest.raises(DataError, match=rf"corpus\.json: {message}"):
        Corpus.open(large)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_sidecar_that_is_not_json(large: Path, content: bytes) -> None:
    Path(f"{large}.json").write_bytes(content)
    with pytest.raises(DataError, match=r"corpus\.json: not valid JSON"):
        Sidecar.read(large)
    Path(f"{large}.json").write_bytes(b"[1]")
    with pytest.raises(DataError, match=r"corpus\.json: field the top level must be an object, found \[1\]"):
        Sidecar.read(large)


def test_sidecar_round_trip(large: Path, tmp_path: Path) -> None:
    sidecar = Sidecar.read(large)
    sidecar.write(tmp_path / "copy.json")
    assert Sidecar.read(tmp_path / "copy") == sidecar


def test_fingerprint_is_that_of_the_content(make_corpus: Callable[..., Path]) -> None:
    first = Corpus.open(make_corpus(["a", "b"], "first", shuffle=False)).fingerprint
    assert Corpus.open(make_corpus(["a", "b"], "same", shuffle=False)).fingerprint == first
    assert Corpus.open(make_corpus(["b", "a"], "other", shuffle=False)).fingerprint != first


def _read_in_child(payload: bytes) -> list[int]:
    return pickle.loads(payload).tokens(0, 50).tolist()


def test_pickled_corpus_opens_again_in_another_process(large: Path) -> None:
    corpus = Corpus.open(large)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read_in_child, (pickle.dumps(corpus),)) == all_tokens(large)[:50].tolist()
    assert len(pickle.dumps(corpus)) < 1000
    index = pickle.loads(pickle.dumps(CorpusIndex.open(large)))
    assert index.num_documents == len(LARGE)


def test_rebuilt_corpus_is_refused_when_unpickled(make_corpus: Callable[..., Path]) -> None:
    payload = pickle.dumps(Corpus.open(make_corpus(["one"])))
    make_corpus(["two"], overwrite=True)
    with pytest.raises(DataError, match="the corpus was rebuilt while it was in use"):
        pickle.loads(payload)


def test_open_corpus_keeps_reading_what_it_opened(make_corpus: Callable[..., Path]) -> None:
    prefix = make_corpus(["one"])
    corpus = Corpus.open(prefix)
    before = all_tokens(prefix).tolist()
    make_corpus(["two two two"], overwrite=True)
    assert corpus.tokens(0, corpus.num_tokens).tolist() == before


def overwrite(path: Path, position: int, *, keep_time: bool = False) -> None:
    """Damages a file in place, unlike `flip`, which cuts it to nothing first."""
    before = path.stat()
    with path.open("r+b", buffering=0) as stream:
        stream.seek(position)
        stream.write(b"\xff")
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("suffix", ["bin", "crc"])
def test_a_file_changed_in_place_is_found_without_reading(large: Path, suffix: str) -> None:
    corpus = Corpus.open(large)
    corpus.check_unchanged()
    corpus.tokens(0, corpus.num_tokens)
    overwrite(Path(f"{large}.{suffix}"), 100)
    with pytest.raises(DataError, match=rf"corpus\.{suffix}: was changed while it was open: \d+ bytes written at 20"):
        corpus.check_unchanged()


def test_a_file_that_grew_is_found(large: Path) -> None:
    corpus = Corpus.open(large)
    with Path(f"{large}.bin").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(DataError, match=r"corpus\.bin: was changed while it was open"):
        corpus.check_unchanged()


def test_damage_with_its_time_put_back_is_found_at_the_next_read(large: Path) -> None:
    corpus = Corpus.open(large)
    corpus.tokens(0, corpus.num_tokens)
    overwrite(Path(f"{large}.bin"), 100, keep_time=True)
    corpus.check_unchanged()
    with pytest.raises(DataError, match=r"corpus\.bin: block 0 .* the file is damaged"):
        corpus.tokens(0, 10)


def test_a_corpus_replaced_by_name_is_no_change(make_corpus: Callable[..., Path]) -> None:
    corpus = Corpus.open(make_corpus(["one"]))
    before = corpus.tokens(0, corpus.num_tokens).tolist()
    make_corpus(["two two two"], overwrite=True)
    corpus.check_unchanged()
    assert corpus.tokens(0, corpus.num_tokens).tolist() == before


def test_blocks_are_verified_again_when_asked(large: Path) -> None:
    corpus = Corpus.open(large)
    corpus.tokens(0, corpus.num_tokens)
    overwrite(Path(f"{large}.bin"), BLOCK_BYTES + 5)
    corpus.tokens(BLOCK_BYTES // 4, 5)  # Verified before.
    corpus.verify_again()
    with pytest.raises(DataError, match=r"corpus\.bin: block 1 .* the file is damaged"):
        corpus.tokens(BLOCK_BYTES // 4, 5)


@given(st.lists(st.binary(max_size=3 * BLOCK_BYTES), max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_checksums_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    whole = b"".join(pieces) + b"x" * (BLOCK_BYTES - 3)
    checksums = StreamChecksums()
    for piece in [*pieces, b"x" * (BLOCK_BYTES - 3)]:
        checksums.update(piece)
    blocks = [whole[start : start + BLOCK_BYTES] for start in range(0, len(whole), BLOCK_BYTES)]
    assert checksums.crc_bytes() == struct.pack(f"<{len(blocks)}I", *map(zlib.crc32, blocks))
    assert checksums.size_bytes == len(whole)


def test_verify_accepts_a_sound_corpus_and_finds_damage(large: Path, make_corpus: Callable[..., Path]) -> None:
    assert verify(large) == Sidecar.read(large)
    for suffix in ("idx", "crc"):
        content = Path(f"{large}.{suffix}").read_bytes()
        flip(Path(f"{large}.{suffix}"), 50 if suffix == "idx" else 5)
        with pytest.raises(DataError, match=rf"corpus\.{suffix}: sha256 .*, the sidecar says"):
            verify(large)
        Path(f"{large}.{suffix}").write_bytes(content[:-8])
        with pytest.raises(DataError, match=rf"corpus\.{suffix}: {len(content) - 8} bytes"):
            verify(large)
        Path(f"{large}.{suffix}").write_bytes(content)
    Path(f"{large}.idx").unlink()
    with pytest.raises(DataError, match=r"corpus\.idx: cannot be read"):
        verify(large)


def test_verify_compares_index_and_tokens(make_corpus: Callable[..., Path]) -> None:
    """A forged sidecar that states the checksums of an index of other documents."""
    prefix, other = make_corpus(["aa b", "c"], shuffle=False), make_corpus(["a", "bb c"], "other", shuffle=False)
    Path(f"{prefix}.idx").write_bytes(Path(f"{other}.idx").read_bytes())
    edit_sidecar(prefix, idx=orjson.loads(Path(f"{other}.json").read_bytes())["idx"])
    assert Sidecar.read(prefix).num_tokens == Sidecar.read(other).num_tokens
    with pytest.raises(DataError, match=r"1 documents, first document 0, do not end with 151643"):
        verify(prefix)


def with_blocks_of_earlier_versions(prefix: Path) -> Path:
    """The corpus as it was written before blocks were pages: a checksum for each 64 KiB, which the sidecar omits."""
    content = Path(f"{prefix}.bin").read_bytes()
    sums = [zlib.crc32(content[start : start + 65536]) for start in range(0, len(content), 65536)]
    crc = struct.pack(f"<{len(sums)}I", *sums)
    Path(f"{prefix}.crc").write_bytes(crc)
    digest = {"size_bytes": len(crc), "sha256": hashlib.sha256(crc).hexdigest()}
    edit_sidecar(prefix, crc=digest, crc_block_bytes="DELETE")
    return prefix


def test_a_corpus_of_an_earlier_version_reads_and_finds_damage(large: Path) -> None:
    expected = all_tokens(large)
    old = with_blocks_of_earlier_versions(large)
    assert verify(old).crc_block_bytes == 65536
    corpus = Corpus.open(old)
    assert np.array_equal(corpus.tokens(0, corpus.num_tokens), expected)
    flip(Path(f"{old}.bin"), 65536 + 777)
    corpus = Corpus.open(old)
    corpus.tokens(0, 5)
    with pytest.raises(DataError, match=r"corpus\.bin: block 1 \(bytes 65536 to 131071\) has CRC-32"):
        corpus.tokens(65536 // 4, 5)
    with pytest.raises(DataError, match=r"corpus\.bin: block 1 \(bytes 65536 to 131071\) is damaged"):
        verify(old)


def test_merging_brings_a_corpus_of_an_earlier_version_up_to_date(large: Path, tmp_path: Path) -> None:
    expected = all_tokens(large)
    old = with_blocks_of_earlier_versions(large)
    sidecar = merge([old], tmp_path / "new")
    assert sidecar.crc_block_bytes == BLOCK_BYTES
    assert sidecar.fingerprint == Corpus.open(old).fingerprint
    assert verify(tmp_path / "new").tokenizer == Corpus.open(old).sidecar.tokenizer
    assert np.array_equal(all_tokens(tmp_path / "new"), expected)
    flip(Path(f"{old}.bin"), 5)
    with pytest.raises(DataError, match=r"corpus\.bin: is damaged"):
        merge([old], tmp_path / "other")


@pytest.mark.parametrize("value", [0, 4095, 8192, "4096", None])
def test_blocks_of_another_size_are_refused(large: Path, value: Any) -> None:
    edit_sidecar(large, crc_block_bytes=value)
    with pytest.raises(DataError, match=r"corpus\.json: field crc_block_bytes"):
        Corpus.open(large)


def test_what_is_read_is_sized_to_what_is_asked_for(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.open(large)
    read, pread = [], os.pread

    def counted(descriptor: int, count: int, position: int) -> bytes:
        read.append(count)
        return pread(descriptor, count, position)

    monkeypatch.setattr(os, "pread", counted)
    # A sample of 2048 tokens at a place of its own: three pages and their checksums, where 64 KiB were read.
    corpus.tokens(5 * 2048, 2049)
    assert sum(read) == 3 * BLOCK_BYTES + 3 * 4
    read.clear()
    corpus.tokens(5 * 2048, 2049)
    assert read == [4 * 2049]
