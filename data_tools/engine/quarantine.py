"""The list of bad records: file, line, reason and detail of each, in the order of the input."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from data_tools.engine.task import Manifest
from data_tools.io.atomic_file import atomic_output
from data_tools.io.small_json import SmallFileError, parse_json
from data_tools.readers.jsonl import Rejection

BadRow = tuple[int, int, str, str]
"""Number of the input, line in it, reason, detail."""


def write_quarantine(
    path: Path, manifests: Sequence[Manifest], rows_of: Callable[[Manifest], Iterator[BadRow]] | None = None
) -> None:
    """Lists every bad record by file and line; lines of ranges are numbered from the beginning of their file.

    Args:
        path: the list.
        manifests: of tasks with a file NAME.bad.jsonl of [number of the input, line, reason, detail] and the value
            `lines`, how many lines each input has; in the order of the input.
        rows_of: gives the rows of a manifest; by default those of that file.
    """
    lines_before: dict[str, int] = {}
    with atomic_output(path) as stream:
        for manifest in manifests:
            bases = []
            for one, lines in zip(manifest.inputs, manifest.values["lines"], strict=True):
                # A file may be named twice; its ranges begin with the one at 0.
                base = lines_before.get(one["path"], 0) if one["start"] else 0
                bases.append(base)
                lines_before[one["path"]] = base + lines
            for number, line, reason, detail in (rows_of or bad_rows)(manifest):
                rejection = Rejection(manifest.inputs[number]["path"], bases[number] + line, reason, detail)
                stream.write(orjson.dumps(asdict(rejection), option=orjson.OPT_APPEND_NEWLINE))


def bad_rows(manifest: Manifest) -> Iterator[BadRow]:
    """What NAME.bad.jsonl of a task lists.

    Raises:
        SmallFileError: the file is damaged.
    """
    path = manifest.path(f"{manifest.name}.bad.jsonl")
    with path.open("rb") as stream:
        for line in stream:
            row = parse_json(line, str(path))
            if not isinstance(row, list) or [type(value) for value in row] != [int, int, str, str]:
                raise SmallFileError(f"{path}: a line must be file, line, reason and detail; delete it and run again")
            yield row[0], row[1], row[2], row[3]
