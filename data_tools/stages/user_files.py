"""Files of the user's that a command reads, and the folder in which it keeps what is done until all of it is."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data_tools.corpus.sidecar import InputFile
from data_tools.errors import DataError, PathError, RefusedError
from data_tools.io.atomic_file import refuse_link
from data_tools.io.streams import InputStream


def input_file(path: Path, other_inputs: str) -> InputFile:
    """Size and time of an input, found to be readable before any work is done.

    Args:
        path: the file.
        other_inputs: what to do with a folder or a pattern, for the message.
    Raises:
        RefusedError: it is a folder or a pattern.
        DataError: it cannot be read, or its name is not UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{os.fsencode(path)!r}: the file name is not UTF-8; rename the file") from error
    if path.is_dir() or (glob.has_magic(str(path)) and not path.exists()):
        raise RefusedError(f"{path}: must be one file; {other_inputs}")
    InputStream(path).close()
    status = path.stat()
    return InputFile(path=str(path), size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def refuse_files_named_twice(paths: Sequence[str]) -> None:
    """Lets pass files that are all different: every document of a file named twice would be in the corpus twice.

    Raises:
        RefusedError: one is named twice, by whatever path.
    """
    seen: set[str] = set()
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise RefusedError(f"{path}: is named twice; name every file once")
        seen.add(real)


def require_own_work(work: Path, own: re.Pattern[str], command: str) -> None:
    """Lets pass what an earlier call left, or nothing: the folder is removed in the end.

    Args:
        work: the folder.
        own: names of what a call leaves there.
        command: what makes such a folder, for the message.
    Raises:
        PathError: it is a symbolic link, no folder, or holds something else.
    """
    refuse_link(work)
    if not os.path.lexists(work):
        return
    foreign = [entry for entry in work.iterdir() if not own.fullmatch(entry.name)] if work.is_dir() else [work]
    if foreign:
        raise PathError(
            f"{foreign[0]}: {command} did not make it, but keeps its work in {work} and removes that in the "
            "end; move it away, or choose another --output"
        )


def content_of(path: Path) -> bytes:
    """The content of a small file; empty if it is absent."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
