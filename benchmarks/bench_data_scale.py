"""Growth of the data engine with its input: runs gathered to a corpus, duplicates grouped and joined, all simulated.

    python benchmarks/bench_data_scale.py --write

Each row is measured in a process of its own.

The token files of runs are one file under many names, so that it is read from memory; their indices are whole. What is
written to the token file is counted and thrown away. Everything else is what `qwen-data tokenize` does: places and
slices read, documents sorted and copied.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from results import machine_line, write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_tools.decontamination.benchmark_index import BenchmarkIndex, BenchmarkItem  # noqa: E402
from data_tools.dedup.buckets import write_edges  # noqa: E402
from data_tools.engine.executor import InProcessExecutor  # noqa: E402
from data_tools.engine.input_list import write_input_list  # noqa: E402
from data_tools.engine.runner import Runner  # noqa: E402
from data_tools.engine.task import Manifest, Task, TaskResult, write_manifest  # noqa: E402
from data_tools.io.file_range import FileRange  # noqa: E402
from data_tools.stages.cluster_tasks import REMOVED, join_pairs  # noqa: E402
from data_tools.stages.exact_dedup import HASH_ENTRY, ExactDedupStage  # noqa: E402
from data_tools.stages.exact_dedup import group_bucket as group_hashes  # noqa: E402
from data_tools.stages.tokenize_gather import gather_runs  # noqa: E402
from data_tools.stages.tokenize_runs import ENTRY, RunSizes, index_content  # noqa: E402

DOCUMENT_TOKENS = 2000
PART_DOCUMENTS = 1_000_000
MIB = 1 << 20


def simulated_runs(folder: Path, num_tokens: int, sizes: RunSizes) -> list[Manifest]:
    """Runs of so many tokens, as many as there would be parts of text of four bytes a token."""
    (folder / "runs").mkdir()
    generator = np.random.default_rng(1)
    run_tokens = min(sizes.run_tokens, sizes.part_bytes // 4)
    tokens = folder / "all.tokens"
    with tokens.open("wb") as stream:
        stream.truncate(4 * run_tokens)
    manifests = []
    for number, first in enumerate(range(0, num_tokens, run_tokens)):
        count = min(run_tokens, num_tokens - first) // DOCUMENT_TOKENS
        entries = np.zeros(count, dtype=ENTRY)
        entries["key"] = np.sort(generator.integers(0, 2**64, count, dtype=np.uint64))
        entries["file"], entries["offset"], entries["length"] = number, np.arange(count), DOCUMENT_TOKENS - 1
        content = index_content(entries, sizes.num_ranges)
        name = f"run-{number:06d}"
        (folder / "runs" / f"{name}.index").write_bytes(content)
        os.link(tokens, folder / "runs" / f"{name}.tokens")
        digest = {"size_bytes": 0, "sha256": f"{number:064x}"}
        manifests.append(
            Manifest(
                key="",
                folder=str(folder / "runs"),
                name=name,
                operation="tokenize_encode",
                tool_version="",
                inputs=[],
                records_in=count,
                records_out=count,
                rejected={},
                outputs={f"{name}.index": digest, f"{name}.tokens": digest},
                statistics={},
                examples={},
                values={"runs": [name], "tokens": count * DOCUMENT_TOKENS},
            )
        )
    return manifests


@contextmanager
def counted(thrown_away: str) -> Iterator[Counter[str]]:
    """Counts files opened and reads of runs; what is written to a file whose name begins so only counts."""
    calls: Counter[str] = Counter()
    plain_read, plain_open = os.preadv, os.open
    targets: set[int] = set()

    def read(*arguments: Any) -> int:
        size = plain_read(*arguments)
        calls["reads"] += 1
        return size

    def opening(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = plain_open(path, *arguments, **options)
        targets.discard(descriptor)
        text = os.fspath(path)
        if f"/{thrown_away}" in text:
            targets.add(descriptor)
        elif text.endswith((".index", ".tokens")):
            calls["opened"] += 1
        return descriptor

    def write(descriptor: int, content: Any, _: int) -> int:
        assert descriptor in targets
        calls["written"] += len(content)
        return len(content)

    with mock.patch.multiple(os, preadv=read, open=opening, pwrite=write):
        yield calls


def peak_mib(*, forget: bool = False) -> float:
    """Most memory that this process had since it was last told to ``forget``, or began, in MiB."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


@contextmanager
def folder_and_clock() -> Iterator[tuple[Path, Callable[[], tuple[float, float]]]]:
    """A folder, and how many wall and processor seconds have passed since this was last asked."""
    last = [0.0, 0.0]

    def clock() -> tuple[float, float]:
        now = [time.monotonic(), time.process_time()]
        passed = (now[0] - last[0], now[1] - last[1])
        last[:] = now
        return passed

    with tempfile.TemporaryDirectory(prefix="bench-data-scale-") as name:
        yield Path(name), clock


def gather_row(num_tokens: int) -> str:
    """Runs of so many tokens gathered."""
    sizes = RunSizes.of(4 * num_tokens)
    with folder_and_clock() as (folder, clock):
        encoded = simulated_runs(folder, num_tokens, sizes)
        clock()
        with counted("tokens-") as calls:
            gather_runs(Runner(InProcessExecutor()), folder, encoded, sizes, shuffle=True)
        wall, processor = clock()
        tasks = len(list((folder / "buckets").glob("*.manifest.json")))
    assert calls["written"] > 0.99 * 4 * num_tokens
    return (
        f"| {num_tokens:,} | {len(encoded):,} | {sizes.run_tokens / MIB:,.0f} Mi | {tasks:,} | "
        f"{calls['opened']:,} | {calls['reads']:,} | {wall:,.1f} | {processor:,.1f} | "
        f"{processor / num_tokens * 1e9:.2f} | {peak_mib():,.0f} |"
    )


def exact_row(num_documents: int) -> str:
    """Hash records of so many documents, a tenth of them copies, grouped with the default of `bucket_documents`."""
    bucket_documents = ExactDedupStage().bucket_documents
    generator = np.random.default_rng(1)
    with folder_and_clock() as (folder, clock):
        files = []
        for number, first in enumerate(range(0, num_documents, PART_DOCUMENTS)):
            count = min(PART_DOCUMENTS, num_documents - first)
            entries = np.zeros(count, dtype=HASH_ENTRY)
            which = generator.integers(0, num_documents, count, dtype=np.uint64)
            is_copy = generator.random(count) < 0.1
            # A number for each document; copies have that of another.
            which[~is_copy] = np.arange(first, first + count, dtype=np.uint64)[~is_copy]
            entries["first"] = which * np.uint64(0x9E3779B97F4A7C15)
            entries["second"], entries["row"], entries["size"] = which, np.arange(count), 1
            entries["rank"], entries["identity"] = 1, generator.integers(0, 2**64, count, dtype=np.uint64)
            path = folder / f"part-{number:06d}.hashes"
            entries[np.argsort(entries["first"])].tofile(path)
            files.append(FileRange(path=str(path), size_bytes=path.stat().st_size, sha256=f"{number:064x}"))
        listed = write_input_list(folder / "hashes.json", files)
        num_buckets = -(-num_documents // bucket_documents)
        before = peak_mib(forget=True)
        clock()
        duplicates = 0
        for number in range(num_buckets):
            task = Task(
                operation="exact_dedup_group",
                folder=str(folder),
                name=f"bucket-{number:06d}",
                options={"bucket": number, "num_buckets": num_buckets},
                inputs=(listed,),
            )
            duplicates += group_hashes(task).values["duplicates"]
        wall, processor = clock()
    return (
        f"| {num_documents:,} | {len(files)} | {num_buckets} | {duplicates:,} | {wall:,.1f} | {processor:,.1f} | "
        f"{before:,.0f} | {peak_mib():,.0f} |"
    )


class WatchedRunner(Runner):
    """Knows how much the files below a folder were at most, looking after each phase.

    Attributes:
        most_bytes: of disk.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(InProcessExecutor())
        self._folder = folder
        self.most_bytes = 0

    def run(self, folder: Path, tasks: Sequence[Task], *, sweep: bool = True) -> list[Manifest]:
        """See `Runner.run`."""
        done = super().run(folder, tasks, sweep=sweep)
        size = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        self.most_bytes = max(self.most_bytes, size)
        return done


def join_row(num_documents: int, at_once: int) -> str:
    """Pairs of so many documents, two for each, joined with ``at_once`` as `bucket_documents`; 0: all at once."""
    generator = np.random.default_rng(1)
    # Clusters of ten, each document paired with two of its own; the numbers are hashes.
    members = np.arange(num_documents, dtype=np.uint64)
    pairs = np.concatenate(
        [
            np.stack([members // 10 * 10 + generator.integers(0, 10, len(members), dtype=np.uint64), members], axis=1)
            for _ in range(2)
        ]
    )
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]] * np.uint64(0x9E3779B97F4A7C15), axis=1)
    generator.shuffle(pairs)
    with folder_and_clock() as (folder, clock):
        grouped = []
        for number, part in enumerate(np.array_split(pairs, 16)):
            name = f"band-000-part-{number:04d}"
            write_edges(folder / f"{name}.npy", part)
            task = Task(operation="fuzzy_group", folder=str(folder), name=name, options={}, inputs=())
            grouped.append(write_manifest(task, TaskResult(outputs=[f"{name}.npy"], values={"edges": len(part)})))
        num_pairs = len(pairs)
        del pairs, part, members
        before = peak_mib(forget=True)
        clock()
        at_once = at_once or 2 * num_pairs
        runner = WatchedRunner(folder)
        clusters = join_pairs(runner, folder, grouped, [], at_once, num_documents)
        wall, processor = clock()
        removed = len(np.load(clusters.path(REMOVED), mmap_mode="r"))
        # Of all halves of rounds the last one stays.
        rounds = max((int(path.name.split("-")[1]) for path in folder.glob("round-*-small")), default=0)
    held = f"{at_once:,}" if at_once < 2 * num_pairs else "all"
    return (
        f"| {num_documents:,} | {num_pairs:,} | {held} | {rounds} | {removed:,} | {wall:,.1f} | "
        f"{processor:,.1f} | {runner.most_bytes / 1e6:,.0f} | {before:,.0f} | {peak_mib():,.0f} |"
    )


def decontaminate_row(num_ngrams: int, num_documents: int) -> str:
    """An index of so many n-grams, and so many documents searched."""
    words = [f"w{number}" for number in range(5000)]
    generator = np.random.default_rng(1)

    def text(count: int) -> str:
        return " ".join(words[number] for number in generator.integers(0, len(words), count).tolist())

    index = BenchmarkIndex(BenchmarkItem("b", str(number), text(112)) for number in range(num_ngrams // 100))
    built = peak_mib(forget=True)
    batch = [text(60) for _ in range(1000)]
    started = time.process_time()
    for _ in range(num_documents // len(batch)):
        index.find(batch)
    processor = time.process_time() - started
    return f"| {len(index):,} | {num_documents:,} | {processor:,.1f} | {built:,.0f} | {peak_mib():,.0f} |"


def in_a_process(function: Callable[..., str], *arguments: int) -> str:
    """What ``function`` says, called in a process that did nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def section(scale: float, busy: float) -> list[str]:
    """The benchmark's part of docs/benchmarks.md; all sizes times ``scale``."""

    def rows(function: Callable[..., str], *sizes: tuple[float, ...]) -> list[str]:
        found = []
        for size in sizes:
            found.append(in_a_process(function, *(int(one * scale) for one in size)))
            print(found[-1], file=sys.stderr, flush=True)
        return found

    return [
        "## Growth of the data engine (`benchmarks/bench_data_scale.py`)",
        "",
        machine_line(busy),
        "",
        f"Runs gathered in one process, documents of {DOCUMENT_TOKENS:,} tokens; token files of runs are one file",
        "under many names, which stays in memory, and what is written is counted and thrown away.",
        "",
        "| tokens | runs | run | tasks | opened | reads | wall, s | processor, s | for 10^9 tokens | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows(gather_row, (1e8,), (1e9,), (1e10,)),
        "",
        "Exact duplicates: hash records of simulated documents, a tenth of them copies, default `bucket_documents`.",
        "",
        "| documents | parts | buckets | duplicates | wall, s | processor, s | before, MiB | peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
        *rows(exact_row, (1e6,), (1e7,), (1e8,)),
        "",
        "Near duplicates: pairs of simulated documents joined to clusters; `bucket_documents` as given; disk at most.",
        "",
        "| documents | pairs | at once | rounds | removed | wall, s | processor, s | disk, MB | before | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows(join_row, (1e6, 1e6), (1e7, 1e6), (1e7, 0)),
        "",
        "Decontamination: documents of 60 words against an index of 13-grams.",
        "",
        "| n-grams | documents | processor, s | index, MiB | peak, MiB |",
        "|---|---|---|---|---|",
        *rows(decontaminate_row, (1e5, 1e6), (1e6, 1e5), (1e6, 1e6)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=float, default=1, help="of all sizes")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    lines = section(options.scale, 100 * os.getloadavg()[0] / (os.cpu_count() or 1))
    print("\n".join(lines))
    if options.write:
        write_section("bench-data-scale", lines)


if __name__ == "__main__":
    main()
