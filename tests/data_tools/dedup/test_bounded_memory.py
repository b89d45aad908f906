"""Memory of exact deduplication and decontamination: bounded by what is set, whatever the number of documents."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.decontamination.benchmark_index import BenchmarkIndex, BenchmarkItem
from data_tools.engine.input_list import write_input_list
from data_tools.engine.task import Task
from data_tools.io.file_range import FileRange
from data_tools.stages import exact_dedup
from data_tools.stages.exact_dedup import HASH_ENTRY, group_bucket

PARTS, PART_DOCUMENTS = 10, 3000


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that numpy and Python held at once while it was done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FileRange, int]:
    """Hash records of ten parts, a fifth of them copies, and how many different ones there are."""
    generator = np.random.default_rng(1)
    files, seen = [], set()
    for number in range(PARTS):
        entries = np.zeros(PART_DOCUMENTS, dtype=HASH_ENTRY)
        which = generator.integers(0, PARTS * PART_DOCUMENTS * 2, PART_DOCUMENTS, dtype=np.uint64)
        entries["first"], entries["second"] = which * np.uint64(0x9E3779B97F4A7C15), which
        entries["identity"], entries["row"], entries["size"] = which, np.arange(PART_DOCUMENTS), 1
        path = tmp_path / f"part-{number:06d}.hashes"
        entries[np.argsort(entries["first"])].tofile(path)
        files.append(FileRange(path=str(path), sha256=f"{number:064x}"))
        seen.update(which.tolist())
    # The reader of lists asks for room that it does not touch.
    monkeypatch.setattr(exact_dedup, "read_input_list", lambda _: files)
    return write_input_list(tmp_path / "hashes.json", files), len(seen)


@pytest.mark.parametrize("num_buckets", [1, 4, 16])
def test_grouping_holds_one_bucket(tmp_path: Path, hashes: tuple[FileRange, int], num_buckets: int) -> None:
    listed, num_different = hashes
    found, peaks = 0, []

    def group(number: int) -> None:
        nonlocal found
        task = Task(
            operation="exact_dedup_group",
            folder=str(tmp_path),
            name=f"bucket-{number:06d}",
            options={"bucket": number, "num_buckets": num_buckets},
            inputs=(listed,),
        )
        found += group_bucket(task).values["duplicates"]

    for number in range(num_buckets):
        peaks.append(peak_of(lambda number=number: group(number)))
    assert found == PARTS * PART_DOCUMENTS - num_different > 300
    # As the option says, and some for files and lists.
    assert max(peaks) < 120 * 1.1 * PARTS * PART_DOCUMENTS / num_buckets + 300_000


def test_decontamination_holds_the_benchmarks_and_a_batch() -> None:
    words = [f"word{number}" for number in range(97)]
    items = [BenchmarkItem("b", str(n), " ".join(words[(n * k) % 97] for k in range(1, 40))) for n in range(2, 90)]
    index = BenchmarkIndex(items)
    batch = [items[0].text, "nothing of the kind " * 20] * 10
    index.find(batch)

    def search(times: int) -> None:
        for _ in range(times):
            assert len(index.find(batch)[0]) == 1

    few, many = peak_of(lambda: search(3)), peak_of(lambda: search(20))
    assert many < 1.1 * few + 10_000
