"""Reading at scale, simulated in one process: bytes a step and replica, memory and time at the start of a step.

    python benchmarks/bench_scale_reading.py --write

The ranks of a replica take turns; reads are counted at the system call. "Before" reads as before one rank read for its
stage: every rank all samples, from a corpus with a checksum for each 64 KiB, a whole step before its first forward.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from results import write_section

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qwen_megatron.data.batch import Batch  # noqa: E402
from tests.support.corpora import write_zero_corpus  # noqa: E402
from tests.support.reading import SEQ, Layout, bytes_of_a_step, start_of_a_step  # noqa: E402

LAYOUTS = (Layout(), Layout(tensor=8), Layout(tensor=8, pipeline=8), Layout(tensor=8, pipeline=16, context=4))
SAMPLES = 64
NUM_TOKENS = 1 << 28
DELAY = 0.002


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def reading(folder: Path) -> Iterator[str]:
    """Bytes against ranks."""
    old, new = folder / "old", folder / "new"
    needed = SAMPLES * 4 * (SEQ + 1)
    yield (
        "| ranks a replica | layout | needed, MB | before, MB | now, MB | now / needed | now, documents masked, MB "
        "| ranks that read |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for layout in LAYOUTS:
        before = sum(bytes_of_a_step(old, layout, SAMPLES, everyone_reads=True))
        now = bytes_of_a_step(new, layout, SAMPLES)
        masked = bytes_of_a_step(new, layout, SAMPLES, mask_documents=True)
        yield (
            f"| {layout.ranks} | {layout} | {megabytes(needed)} | {megabytes(before)} | {megabytes(sum(now))} "
            f"| {sum(now) / needed:.1f} | {megabytes(sum(masked))} | {sum(size > 0 for size in now)}; "
            f"masked {sum(size > 0 for size in masked)} |"
        )


def collected(count: int, batches: Iterator[Batch]) -> list[Batch]:
    """As many batches at once."""
    return list(islice(batches, count))


def starting(folder: Path) -> Iterator[str]:
    """Memory and time against micro-batches."""
    yield (
        "| micro-batches a step | held before, every rank, MB | held now, reader, MB | held now, others, MB "
        "| first forward before, ms | now, ms |"
    )
    yield "|---|---|---|---|---|---|"
    for count in (8, 64, 512):
        before = start_of_a_step(folder / "new", count, DELAY, partial(collected, count))
        now = start_of_a_step(folder / "new", count, DELAY, next, read_ahead=count)
        yield (
            f"| {count} | {megabytes(before.reader_bytes)} | {megabytes(now.reader_bytes)} "
            f"| {megabytes(now.other_bytes)} | {before.first_seconds * 1e3:.0f} | {now.first_seconds * 1e3:.0f} |"
        )


def report() -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_zero_corpus(folder / "new", NUM_TOKENS)
        write_zero_corpus(folder / "old", NUM_TOKENS, block_bytes=65536)
        return [
            "Simulated in one process: the ranks of a replica take turns, reads are counted at the system call.",
            "Before: every rank read every sample, checked in blocks of 64 KiB, a whole step before its first forward.",
            "",
            f"A step of {SAMPLES} samples of {SEQ} tokens a replica, bytes read by all its ranks (checksums included):",
            "",
            *reading(folder),
            "",
            f"Micro-batches of one sample of {SEQ} tokens, each read delayed by {DELAY * 1e3:.0f} ms, two threads:",
            "what is held when a step starts, and the time to the first forward of a run, when nothing has been read.",
            "A reader holds a step beside what it works on, at most 256 MiB.",
            "",
            *starting(folder),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    lines = report()
    print("\n".join(lines))
    if options.write:
        write_section("bench-scale reading", ["## Reading at scale (`benchmarks/bench_scale_reading.py`)", "", *lines])


if __name__ == "__main__":
    main()
