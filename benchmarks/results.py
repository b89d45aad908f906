"""docs/benchmarks.md: each benchmark has a section between two marks of its own, and replaces that alone."""

from __future__ import annotations

from collections.abc import Sequence
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
