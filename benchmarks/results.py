"""docs/benchmarks.md: each benchmark has a section between two marks of its own, and replaces that alone."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from data_tools.io.atomic_file import write_atomically

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def write_section(name: str, lines: Sequence[str], path: Path = RESULTS) -> None:
    """Replaces the section of a benchmark, or appends it.

    Args:
        name: Of the benchmark; its marks are `<!-- name -->`.
        lines: The section without marks, its heading first.
        path: The document.
    """
    mark = f"<!-- {name} -->"
    text = path.read_text(encoding="utf-8")
    section = "\n".join([mark, *lines, mark])
    before, found, rest = text.partition(mark)
    after = rest.partition(mark)[2] if found else "\n"
    write_atomically(path, f"{before.rstrip()}\n\n{section}{after}".encode())


def machine_line(busy_before: float) -> str:
    """Where and when, on which versions, and whether other work ran beside.

    Args:
        busy_before: Per cent of all cores, before the start.
    """
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "megatron-core"))
    cores = len(os.sched_getaffinity(0))
    state = "otherwise idle" if busy_before < 5 else f"BUSY with other work ({busy_before:.0f} % before the start)"
    return f"{datetime.now(UTC):%Y-%m-%d}; {model}, {cores} cores, machine {state}; {versions}."
