"""Memory of exact deduplication and decontamination: bounded by what is set, whatever the number of documents."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.decontamination.benchmark_index import BenchmarkIndex, BenchmarkItem
from data_tools.engine.document import Document, ShardWriter, document_numbers, read_documents
from data_tools.engine.input_list import write_input_list
from data_tools.engine.task import Task
from data_tools.io.file_range import FileRange
from data_tools.stages import exact_dedup
from data_tools.stages.exact_dedup import HASH_ENTRY, group_bucket
from data_tools.stages.fuzzy_dedup import _places, apply_clusters

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


def test_the_clusters_of_the_whole_corpus_are_not_held(tmp_path: Path) -> None:
    """Beside the documents of a batch nothing is held of the tables in which all of its documents are looked up."""
    generator = np.random.default_rng(1)
    documents = [Document(f"web@{number}", "web", f"text number {number}") for number in range(30)]
    with ShardWriter(tmp_path, "part-000000", keep_dropped=False) as writer:
        for document in documents:
            writer.keep(document)
    numbers = document_numbers(documents)
    others = generator.integers(0, 2**64, (2, 400_000), dtype=np.uint64)
    removed, survivors = (
        np.unique(np.concatenate(pair)) for pair in zip((numbers[:10], numbers[10:20]), others, strict=True)
    )
    np.save(tmp_path / "removed.npy", removed)
    np.save(tmp_path / "sizes.npy", np.stack([survivors, np.arange(len(survivors), dtype=np.uint64) + 2], axis=1))
    task = Task(
        operation="fuzzy_apply",
        folder=str(tmp_path / "out"),
        name="part-000000",
        options={"largest": []},
        inputs=tuple(FileRange(path=str(tmp_path / n)) for n in ("part-000000.jsonl.zst", "removed.npy", "sizes.npy")),
    )
    (tmp_path / "out").mkdir()
    peak = peak_of(lambda: apply_clusters(task))
    kept = {one.id: one.metadata for one in read_documents(tmp_path / "out/part-000000.jsonl.zst")}
    assert list(kept) == [document.id for document in documents[10:]]
    sizes = dict(zip(survivors.tolist(), range(2, len(survivors) + 2), strict=True))
    expected = [{"cluster_size": sizes[number]} for number in numbers[10:20].tolist()] + [{}] * 10
    assert list(kept.values()) == expected
    assert peak < 400_000 * 8 / 2


@pytest.mark.parametrize("place", ["first", "last", "between", "none"])
def test_places_are_those_of_numpy(place: str) -> None:
    generator = np.random.default_rng(2)
    table = np.sort(generator.integers(2, 10**6, (1 if place == "none" else 5000, 2), dtype=np.uint64), axis=0)
    table = table[: 0 if place == "none" else None]
    numbers = {
        "first": np.array([0, 1, 2], dtype=np.uint64),
        "last": np.array([10**6, 2**64 - 1], dtype=np.uint64),
    }.get(place, np.concatenate([table[:, 0], generator.integers(0, 10**6, 5000, dtype=np.uint64)]))
    assert np.array_equal(_places(table[:, 0], numbers), np.searchsorted(table[:, 0], numbers))


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
