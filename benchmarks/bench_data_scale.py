"""Growth of the data engine with its input: runs gathered to a corpus, simulated to 10^10 tokens.

    python benchmarks/bench_data_scale.py --write

The token files of runs are one file under many names, so that it is read from memory; their indices are whole. What is
written to the token file is counted and thrown away. Everything else is what `qwen-data tokenize` does: places and
slices read, documents sorted and copied.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from results import machine_line, write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_tools.engine.executor import InProcessExecutor  # noqa: E402
from data_tools.engine.runner import Runner  # noqa: E402
from data_tools.engine.task import Manifest  # noqa: E402
from data_tools.stages.tokenize_gather import gather_runs  # noqa: E402
from data_tools.stages.tokenize_runs import ENTRY, RunSizes, index_content  # noqa: E402

DOCUMENT_TOKENS = 2000
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


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - processor


def gather_rows(exponents: list[int]) -> Iterator[str]:
    """A row for each size."""
    for exponent in exponents:
        num_tokens = 10**exponent
        sizes = RunSizes.of(4 * num_tokens)
        with tempfile.TemporaryDirectory(prefix="bench-data-scale-") as name:
            folder = Path(name)
            encoded = simulated_runs(folder, num_tokens, sizes)
            with counted("tokens-") as calls:

                def gather(folder: Path = folder, encoded: list[Manifest] = encoded, sizes: RunSizes = sizes) -> None:
                    gather_runs(Runner(InProcessExecutor()), folder, encoded, sizes, shuffle=True)

                wall, processor = timed(gather)
            tasks = len(list((folder / "buckets").glob("*.manifest.json")))
        assert calls["written"] > 0.99 * 4 * num_tokens
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield (
            f"| 10^{exponent} | {len(encoded):,} | {sizes.run_tokens / MIB:,.0f} Mi | {tasks:,} | "
            f"{calls['opened']:,} | {calls['reads']:,} | {wall:,.1f} | {processor:,.1f} | "
            f"{wall / num_tokens * 1e9:.2f} | {peak:,.0f} |"
        )


def section(exponents: list[int], busy: float) -> list[str]:
    """The benchmark's part of docs/benchmarks.md."""
    return [
        "## Growth of the data engine (`benchmarks/bench_data_scale.py`)",
        "",
        machine_line(busy),
        "",
        f"Runs gathered in one process, documents of {DOCUMENT_TOKENS:,} tokens; token files of runs are one file",
        "under many names, which stays in memory, and what is written is counted and thrown away.",
        "",
        "| tokens | runs | run | tasks | opened | reads | wall, s | processor, s | s for 10^9 tokens | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *gather_rows(exponents),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--exponents", type=int, nargs="+", default=[8, 9, 10], help="powers of ten of tokens")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    lines = section(options.exponents, 100 * os.getloadavg()[0] / (os.cpu_count() or 1))
    print("\n".join(lines))
    if options.write:
        write_section("bench-data-scale", lines)


if __name__ == "__main__":
    main()
