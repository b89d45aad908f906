"""Exact accounting of tensors: none missing, none extra, every shape as the configuration says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from qwen_megatron.errors import CheckpointError

# A folder of another model has thousands of wrong tensors; the first few tell.
SHOWN = 8


def check_tensors(
    folder: Path,
    *,
    expected: Mapping[str, tuple[int, ...]],
    actual: Mapping[str, tuple[Path, tuple[int, ...]]],
    ignored: Collection[str] = (),
) -> None:
    """Compares names and shapes.

    Args:
        folder: Where missing tensors should have been.
        expected: Shape by name.
        actual: File and shape by name.
        ignored: Names that may be there besides.
    Raises:
        CheckpointError: naming each tensor, its file, what was expected and what was found.
    """
    problems = [
        f"{folder}: {name} is missing; expected shape {list(shape)}"
        for name, shape in expected.items()
        if name not in actual
    ]
    for name, (file, shape) in actual.items():
        if name in expected and shape != expected[name]:
            problems.append(f"{file}: {name} has shape {list(shape)}; expected {list(expected[name])}")
        elif name not in expected and name not in ignored:
            problems.append(f"{file}: {name} of shape {list(shape)} is extra; the configuration has no place for it")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise CheckpointError("\n".join(problems[:SHOWN] + more))
