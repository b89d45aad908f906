"""Tasks that each take one part of what the stage before wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.engine.task import Manifest, Task, documents_file
from data_tools.io.file_range import FileRange


def part_tasks(
    operation: str,
    folder: Path,
    parts: Sequence[Manifest],
    options: Mapping[str, Any] | None = None,
    shared: Sequence[FileRange] = (),
) -> list[Task]:
    """One task for each part, with its name.

    Args:
        operation: what is done.
        folder: where the tasks work.
        parts: that hold documents.
        options: of every task.
        shared: what every task reads after the documents of its part.
    """
    return [
        Task(
            operation=operation,
            folder=str(folder),
            name=part.name,
            options=dict(options or {}),
            inputs=(part.output(documents_file(part.name)), *shared),
            documents=part.records_out,
        )
        for part in parts
    ]
