"""Files on disk and behind URLs: found, identified, opened."""

import glob
import os
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.errors import DataError
from data_tools.io.file_range import FileRange
from data_tools.io.work_done import counted


def is_url(path: str) -> bool:
    """Whether ``path`` is for fsspec: "s3://bucket/file", "memory://file"; a local path is not."""
    return "://" in path


def find_files(pattern: str) -> list[FileRange]:
    """The files that a path, a glob pattern ("**" for subfolders) or a folder names, in the order of their names.

    Raises:
        DataError: there is none, or the file system cannot be reached.
    """
    found = _find_remote(pattern) if is_url(pattern) else _find_local(pattern)
    if not found:
        raise DataError(f"{pattern}: no such file; check the path (a pattern needs * or **)")
    return sorted(found, key=lambda one: one.path)


def _find_local(pattern: str) -> list[FileRange]:
    if Path(pattern).is_dir():
        pattern = os.path.join(glob.escape(pattern), "**")
    paths = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
    files = []
    for path in paths:
        try:
            path.encode("utf-8")
            status = os.stat(path)
        except UnicodeEncodeError as error:
            raise DataError(f"{os.fsencode(path)!r}: the file name is not UTF-8; rename the file") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if os.path.isfile(path):
            files.append(FileRange(path=path, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns))
    return files


def _find_remote(pattern: str) -> list[FileRange]:
    fsspec = _fsspec()
    try:
        file_system, path = fsspec.core.url_to_fs(pattern)
        if file_system.isdir(path):
            path = f"{path.rstrip('/')}/**"
        paths = [path] if file_system.isfile(path) else file_system.glob(path)
        return [_remote_file(file_system, one) for one in paths if file_system.isfile(one)]
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{pattern}: {error}") from error


def _remote_file(file_system: Any, path: str) -> FileRange:
    url = file_system.unstrip_protocol(path)
    try:
        mtime_ns = int(file_system.modified(path).timestamp() * 1e9)
    except (NotImplementedError, FileNotFoundError):
        mtime_ns = 0  # Some stores keep no times; the size has to do.
    return FileRange(path=url, size_bytes=int(file_system.size(path)), mtime_ns=mtime_ns)


def open_input(path: str) -> BinaryIO:
    """A seekable stream of the bytes of a file as they are stored; what a task reads of it counts as progress.

    Raises:
        DataError: it cannot be opened.
    """
    return counted(open_uncounted(path))


def open_uncounted(path: str) -> BinaryIO:
    """Opens a file as `open_input` does, for whoever counts in another way what a task has read."""
    try:
        if is_url(path):
            stream: BinaryIO = _fsspec().open(path, "rb").open()
            return stream
        return open(path, "rb", buffering=0)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error


def check_unchanged(before: FileRange) -> None:
    """Looks whether a file is as it was when the plan was made.

    Raises:
        DataError: it has changed.
    """
    now = {one.path: one for one in find_files(glob.escape(before.path) if not is_url(before.path) else before.path)}
    after = now.get(before.path)
    if after is None or (after.size_bytes, after.mtime_ns) != (before.size_bytes, before.mtime_ns):
        raise DataError(f"{before.path}: changed while it was read; run again when it is complete")


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise DataError("paths with :// need fsspec; in the checkout run: pip install -e '.[data]'") from error
    return fsspec
