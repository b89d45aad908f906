"""Runs and buckets: their sizes, the places in an index, how often files are opened, the same bytes for all of it."""

import errno
import fcntl
import hashlib
import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.corpus.shuffle import document_keys
from data_tools.engine.executor import InProcessExecutor
from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest, Task, TaskResult, write_manifest
from data_tools.io import open_files
from data_tools.io.checksums import BLOCK_BYTES
from data_tools.io.open_files import files_to_keep_open
from data_tools.readers.jsonl import RejectedRecordError
from data_tools.stages import tokenize_bucket, tokenize_gather, tokenize_runs
from data_tools.stages.tokenize_encode import RunWriter
from data_tools.stages.tokenize_gather import gather_runs
from data_tools.stages.tokenize_runs import ENTRY, PLACE, TOKENS_IN_MEMORY, RunSizes, index_content
from data_tools.tokenizer.batch_encoder import EncodedBatch
from data_tools.tokenizer.qwen import END_OF_DOCUMENT

SIZES = RunSizes(run_tokens=600, num_ranges=64, part_bytes=1)
SEGMENT = BLOCK_BYTES


def test_slices_do_not_become_small() -> None:
    for exponent in (10, 11, 12):
        tokens = 10**exponent
        sizes = RunSizes.of(4 * tokens)
        runs = max(-(-tokens // sizes.run_tokens), 4 * tokens // sizes.part_bytes)
        buckets = -(-tokens // sizes.run_tokens)
        assert sizes.run_tokens <= TOKENS_IN_MEMORY
        assert buckets * 8 <= sizes.num_ranges <= buckets * 64
        # Half a megabyte or more. Runs and buckets of a fixed size: 900 million slices of 1100 tokens at 10^12.
        assert tokens / (runs * buckets) > 125_000


@pytest.mark.parametrize(("tokens", "limit", "expected"), [(10**9, None, 2**25), (10**12, None, 2**29), (10**12, 7, 7)])
def test_run_size_goes_by_input_and_memory(tokens: int, limit: int | None, expected: int) -> None:
    sizes = RunSizes.of(4 * tokens, *([] if limit is None else [limit]))
    assert sizes.run_tokens == expected


def test_many_shards_are_put_together_and_few_are_not() -> None:
    few = RunSizes.of(1000).groups([10] * 100)
    assert few == [range(number, number + 1) for number in range(100)]
    sizes = RunSizes.of(2**42)
    many = sizes.groups([2**28] * 2**14)
    assert [file for group in many for file in group] == list(range(2**14))
    assert {len(group) for group in many} == {8}
    assert sizes.part_bytes == 4 * sizes.run_tokens == 2**31


def test_places_of_ranges_are_those_that_a_search_finds() -> None:
    generator = np.random.default_rng(1)
    entries = np.zeros(500, dtype=ENTRY)
    # Some ranges are empty.
    entries["key"] = np.sort(generator.integers(0, 2**64, 500, dtype=np.uint64) & ~np.uint64(1 << 60))
    entries["length"] = generator.integers(0, 50, 500)
    content = index_content(entries, 64)
    places = np.frombuffer(content[: 65 * PLACE.itemsize], dtype=PLACE)
    assert content[65 * PLACE.itemsize :] == entries.tobytes()
    for number in range(65):
        before = [entry for entry in entries if int(entry["key"]) < number * 2**58]
        assert places[number].item() == (len(before), sum(int(entry["length"]) + 1 for entry in before))


def documents() -> list[tuple[int, int, list[int]]]:
    chooser = random.Random(5)
    # One is longer than some stretches of the file together.
    lengths = [12000 if number == 21 else chooser.choice([0, 1, 7, 30, 300]) for number in range(60)]
    return [
        (number // 15, 100 * (number % 15), [chooser.randrange(1000) for _ in range(length)])
        for number, length in enumerate(lengths)
    ]


def write_runs(folder: Path, *, shuffle: bool) -> list[Manifest]:
    manifests = []
    (folder / "runs").mkdir()
    for file in range(4):
        options = {"seed": 3, "shuffle": shuffle, "run_tokens": SIZES.run_tokens, "num_ranges": SIZES.num_ranges}
        runs = RunWriter(folder / "runs", f"part-{file:06d}", options)
        for number, offset, ids in documents():
            if number == file and len(ids) >= 300 and offset % 300 == 0:
                runs.add_long(file, offset, iter([np.array(ids, dtype=np.int32)]))
            elif number == file:
                lengths, offsets = np.array([len(ids)], dtype=np.int32), np.array([offset], dtype=np.uint64)
                runs.add(file, EncodedBatch(np.array(ids, dtype=np.int32), lengths, offsets, [], 1, []))
        runs.flush()
        runs.publish()
        task = Task(
            operation="tokenize_encode", folder=str(folder / "runs"), name=f"part-{file:06d}", options={}, inputs=()
        )
        count = runs.num_documents
        values = {"runs": runs.names, "tokens": runs.num_tokens}
        result = TaskResult(
            outputs=[*runs.digests], records_in=count, records_out=count, values=values, digests=runs.digests
        )
        manifests.append(write_manifest(task, result))
    return manifests


def gathered(folder: Path, encoded: list[Manifest], *, shuffle: bool) -> tuple[bytes, bytes]:
    """The tokens and the lengths; what the tasks say of the tokens is right."""
    target, stretches = gather_runs(Runner(InProcessExecutor()), folder, encoded, SIZES, shuffle=shuffle)
    content = target.read_bytes()
    blocks = [content[first : first + BLOCK_BYTES] for first in range(0, len(content), BLOCK_BYTES)]
    segments = [content[first : first + SEGMENT] for first in range(0, len(content), SEGMENT)]
    assert sum(one.values["tokens"] for one in stretches) * 4 == len(content)
    crcs = b"".join(one.path(f"{one.name}.crc").read_bytes() for one in stretches)
    assert crcs == np.array([zlib.crc32(block) for block in blocks], dtype="<u4").tobytes()
    digests = [digest for one in stretches for digest in one.values["digests"]]
    assert digests == [hashlib.sha256(segment).hexdigest() for segment in segments]
    return content, b"".join(one.path(f"{one.name}.lengths").read_bytes() for one in stretches)


def expected(*, shuffle: bool) -> tuple[bytes, bytes]:
    def place(one: tuple[int, int, list[int]]) -> tuple[int, int, int]:
        key = int(document_keys(3, one[0], np.array([one[1]], dtype=np.uint64))[0]) if shuffle else 0
        return key, one[0], one[1]

    ids = [[*one[2], END_OF_DOCUMENT] for one in sorted(documents(), key=place)]
    tokens = np.array([token for one in ids for token in one], dtype=np.int32)
    return tokens.tobytes(), np.array([len(one) for one in ids], dtype=np.int32).tobytes()


@pytest.mark.parametrize("shuffle", [True, False])
def test_same_bytes_for_any_number_of_tasks_and_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shuffle: bool
) -> None:
    monkeypatch.setattr(tokenize_gather, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(tokenize_bucket, "_PIECE_TOKENS", 70)
    encoded = write_runs(tmp_path, shuffle=shuffle)
    num_runs = sum(len(one.values["runs"]) for one in encoded)
    assert num_runs > 10
    for number, (tasks, kept, large) in enumerate([(30, 99, 10**6), (3, 99, 200), (1, 0, 10**6), (7, 5, 100)]):
        monkeypatch.setattr(tokenize_gather, "_MOST_TASKS", tasks)
        monkeypatch.setattr(tokenize_bucket, "_LARGE_TOKENS", large)
        monkeypatch.setattr(tokenize_runs, "files_to_keep_open", lambda wanted, most=kept: min(wanted, most))
        work = tmp_path / str(number)
        work.mkdir()
        assert gathered(work, encoded, shuffle=shuffle) == expected(shuffle=shuffle)
        assert len(list((work / "buckets").glob("*.manifest.json"))) <= tasks


def test_a_rejected_long_document_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[np.ndarray[Any, np.dtype[np.int32]]]:
        yield np.zeros(5000, dtype=np.int32)
        raise RejectedRecordError("not_nfc", "in the middle")

    options = {"seed": 3, "shuffle": True, "run_tokens": 600, "num_ranges": 64}
    with RunWriter(tmp_path, "part", options) as runs:
        with pytest.raises(RejectedRecordError):
            runs.add_long(0, 0, pieces())
        assert not [*tmp_path.iterdir()]
        runs.add_long(0, 0, iter([np.zeros(3, dtype=np.int32)]))
        runs.publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.run-0000.index", "part.run-0000.tokens"]

    def fail() -> None:
        with RunWriter(tmp_path, "other", options) as runs:
            runs.add_long(0, 0, iter([np.zeros(3, dtype=np.int32)]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not [*tmp_path.glob("other*.tokens"), *tmp_path.glob(".*")]


@pytest.mark.parametrize("refused", ["opened", "read"])
def test_a_file_system_without_direct_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    plain_read = os.preadv
    num_refused = 0

    def reading(descriptor: int, rooms: list[Any], position: int) -> int:
        nonlocal num_refused
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            num_refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return plain_read(descriptor, rooms, position)

    if refused == "opened":
        monkeypatch.setattr(tokenize_runs, "open_direct", lambda path, flags: None)
    monkeypatch.setattr(os, "preadv", reading)
    monkeypatch.setattr(tokenize_gather, "SEGMENT_BYTES", SEGMENT)
    encoded = write_runs(tmp_path, shuffle=True)
    assert gathered(tmp_path, encoded, shuffle=True) == expected(shuffle=True)
    assert (num_refused == 0) == (refused == "opened")


def test_a_task_opens_each_run_once_and_reads_of_an_index_what_its_buckets_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = write_runs(tmp_path, shuffle=True)
    files = {name for one in encoded for name in one.outputs}
    monkeypatch.setattr(tokenize_gather, "_MOST_TASKS", 4)
    monkeypatch.setattr(tokenize_gather, "SEGMENT_BYTES", SEGMENT)
    opened: Counter[str] = Counter()
    of_index = 0
    plain_open, plain_read = os.open, os.preadv

    def counting_open(path: Any, *arguments: Any, **options: Any) -> int:
        opened[Path(os.fsdecode(path)).name] += 1
        return plain_open(path, *arguments, **options)

    def counting_read(descriptor: int, rooms: list[Any], position: int) -> int:
        nonlocal of_index
        size = plain_read(descriptor, rooms, position)
        of_index += size if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".index") else 0
        return size

    monkeypatch.setattr(os, "open", counting_open)
    monkeypatch.setattr(os, "preadv", counting_read)
    gather_runs(Runner(InProcessExecutor()), tmp_path, encoded, SIZES, shuffle=True)
    assert 3 <= len(list((tmp_path / "buckets").glob("*.manifest.json"))) <= 4
    num_opened = {name: opened[name] for name in files}
    # Once by each task, and the index once to choose the buckets.
    assert max(num_opened.values()) <= 5
    assert min(num_opened.values()) >= 1
    entries = sum(one.records_out for one in encoded) * ENTRY.itemsize
    tables = len(files) // 2 * PLACE.itemsize
    assert of_index <= entries + tables * (65 + 64 + 2 * 4)


def test_kept_files_are_a_small_part_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [1024, 4096]
    monkeypatch.setattr(open_files.resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(open_files.resource, "setrlimit", lambda _, new: limits.__setitem__(slice(0, 2), new))
    assert files_to_keep_open(3) == 3
    assert limits == [1024, 4096]
    assert files_to_keep_open(3000) == (4096 - 256) // 64
    assert limits == [4096, 4096]
