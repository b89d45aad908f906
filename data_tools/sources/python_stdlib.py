"""The source of the running Python's standard library: a few million tokens of real text on every machine.

Its licence is PSF-2.0; it is read where it is installed, never redistributed.
"""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output

# Tests, generated tables, an editor, demos and bundled installers: repetitive or not the library itself.
EXCLUDED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)


class Collected(NamedTuple):
    """What was written and what was left out."""

    num_files: int
    num_bytes: int
    skipped: list[str]  # files that are not UTF-8


def source_files(root: Path | None = None) -> Iterator[Path]:
    """The library's modules in the order of their relative paths.

    Args:
        root: the library's folder; that of the running Python if None.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    kept = []
    for folder, folders, names in os.walk(root):
        # Not looked into: below them may be all that is installed.
        folders[:] = set(folders) - EXCLUDED_FOLDERS
        kept += [Path(folder, name).relative_to(root) for name in names if name.endswith(".py")]
    return (root / path for path in sorted(kept, key=Path.as_posix))


def collect(output: Path, root: Path | None = None) -> Collected:
    """Writes one JSON object {"id": relative path, "text": source} for each module to ``output``, atomically.

    Empty modules are left out. The same Python gives the same bytes.

    Args:
        output: JSONL file; its folder is created if need be.
        root: the library's folder; that of the running Python if None.
    Raises:
        DataError: the Python at hand has no library sources.
        OSError: ``output`` cannot be written.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    num_files = num_bytes = 0
    skipped = []
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(output) as stream:
        for path in source_files(root):
            source = path.read_bytes()
            identifier = path.relative_to(root).as_posix()
            try:
                text = source.decode("utf-8")
            except UnicodeDecodeError:
                skipped.append(identifier)
                continue
            if text:
                stream.write(orjson.dumps({"id": identifier, "text": text}, option=orjson.OPT_APPEND_NEWLINE))
                num_files += 1
                num_bytes += len(source)
        if num_files == 0:
            raise DataError(
                f"{root}: no Python sources there; use a Python whose standard library is installed as files"
            )
    return Collected(num_files, num_bytes, skipped)
