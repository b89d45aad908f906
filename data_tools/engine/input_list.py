"""Many files as one input: a list of names and checksums, so that thousands of tasks need not each repeat it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from data_tools.io.atomic_file import refuse_link, write_atomically
from data_tools.io.checksums import sha256_of_file
from data_tools.io.file_range import FileRange
from data_tools.io.small_json import SmallFileError, fits, is_count, read_json


def write_input_list(path: Path, inputs: Sequence[FileRange]) -> FileRange:
    """Writes the list of ``inputs``, files that tasks wrote, and gives it as an input that stands for all of them."""
    entries = [(os.path.relpath(one.path, path.parent), one.size_bytes, one.sha256) for one in inputs]
    refuse_link(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, orjson.dumps(entries))
    return FileRange(path=str(path), size_bytes=path.stat().st_size, sha256=sha256_of_file(path))


def read_input_list(one: FileRange) -> list[FileRange]:
    """What `write_input_list` was given.

    Raises:
        SmallFileError: the list is missing or damaged.
    """
    folder = Path(one.path).parent
    entries = read_json(Path(one.path))
    if not fits(entries, list[list[Any]]) or not all(
        len(entry) == 3 and fits(entry[0], str) and is_count(entry[1]) and fits(entry[2], str) for entry in entries
    ):
        raise SmallFileError(f"{one.path}: must be a list of name, size and SHA-256; delete it and run again")
    return [
        FileRange(path=os.path.normpath(folder / name), size_bytes=size_bytes, sha256=sha256)
        for name, size_bytes, sha256 in entries
    ]
