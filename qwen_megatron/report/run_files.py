"""What a run has left in its folder, read without trust: any of it may be missing, torn or written by someone else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.io.small_json import MissingFileError, SmallFileError, read_object, read_rows
from qwen_megatron.errors import ConfigError

Row = Mapping[str, Any]
Point = tuple[float, float]

CHECKPOINT_FOLDER = re.compile(r"iter_(\d{1,15})")

# Beyond these sums, squares and axes of a chart would leave what a float can hold.
LARGEST_NUMBER = 1e30
SMALLEST_NUMBER = 1e-30


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Rows of a run's files.

    Attributes:
        directory: The run's folder.
        steps: Rows of steps, in their order.
        evaluations: Rows of evaluations.
        starts: Rows of starts.
        completion: How the last start ended, if it ended in order.
        failures: Failures, the latest last.
        checkpoints: Steps of the checkpoints that are there, in their order.
        num_unreadable: Lines and files that are no JSON objects.
    """

    directory: Path
    steps: Sequence[Row]
    evaluations: Sequence[Row]
    starts: Sequence[Row]
    completion: Row | None
    failures: Sequence[Row]
    checkpoints: Sequence[int]
    num_unreadable: int


def read_run(directory: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        ConfigError: if it holds neither metrics nor starts.
    """
    metrics, starts = directory / "metrics.jsonl", directory / "starts.jsonl"
    if not metrics.is_file() and not starts.is_file():
        raise ConfigError(
            f"{directory}: holds neither metrics.jsonl nor starts.jsonl; name the folder of a run "
            "(checkpoint.directory)"
        )
    unreadable = 0

    def rows(name: str) -> list[Row]:
        nonlocal unreadable
        path = directory / name
        read = [row for _, row in read_rows(path)] if path.is_file() else []
        unreadable += read.count(None)
        return [row for row in read if row is not None]

    def single(name: str) -> Row | None:
        """A file that is one object, on however many lines."""
        nonlocal unreadable
        try:
            return read_object(directory / name)
        except MissingFileError:
            return None
        except SmallFileError:
            unreadable += 1
            return None

    numbered = [row for row in rows("metrics.jsonl") if number(row.get("step")) is not None]
    latest = single("failure.json")
    return RunFiles(
        directory=directory,
        steps=[row for row in numbered if "loss" in row],
        evaluations=[row for row in numbered if "eval_loss" in row],
        starts=rows("starts.jsonl"),
        completion=single("completion.json"),
        failures=[*rows("failures.jsonl"), *([latest] if latest is not None else [])],
        checkpoints=sorted(int(found[1]) for path in directory.iterdir() if (found := named_checkpoint(path))),
        num_unreadable=unreadable,
    )


def named_checkpoint(path: Path) -> re.Match[str] | None:
    """The step in the name of a checkpoint's folder; None if it is none."""
    return CHECKPOINT_FOLDER.fullmatch(path.name) if path.is_dir() else None


def curve(rows: Iterable[Row], name: str) -> list[Point]:
    """(step, value) of the rows that have the value, by step."""
    found = [(number(row.get("step")), number(row.get(name))) for row in rows]
    return sorted((step, value) for step, value in found if step is not None and value is not None)


def number(value: object) -> float | None:
    """A number of a size that a run can have, 0 if it is too small to be drawn; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_NUMBER:
        return None
    return float(value) if abs(value) >= SMALLEST_NUMBER else 0.0


def section(row: Row, name: str) -> Row:
    """A member that should be an object; empty where it is none."""
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def moment(value: object) -> object:
    """A time as starts.jsonl has it, for people; anything else as it is."""
    if isinstance(value, str) and value.endswith("+00:00"):
        return value.removesuffix("+00:00").replace("T", " ") + " UTC"
    return value


def differences(before: object, after: object, name: str = "") -> list[tuple[str, object, object]]:
    """(dotted key, value before, value after) of everything in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            difference
            for key in dict.fromkeys([*before, *after])
            for difference in differences(before.get(key), after.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if before == after else [(name, before, after)]
