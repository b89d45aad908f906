"""How the tools write: whole or not at all (temporary name, fsync, rename), and never through a symbolic link.

A temporary name is random and opened exclusively, so nobody can have put a link there. A file that keeps its name while
it is written (a lock, a log) is opened by `open_unfollowed`.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_tools.errors import PathError
from data_tools.io.system_errors import naming

_SYNCS_AT_ONCE = 8


def refuse_link(path: Path) -> None:
    """Lets ``path`` pass if it is absent or no symbolic link.

    Raises:
        PathError: it is a link, naming it and what it points to.
    """
    if path.is_symlink():
        raise PathError(
            f"{path}: is a symbolic link to {os.readlink(path)}; links are not followed here, remove it (what it "
            "points to stays)"
        )


def open_unfollowed(path: Path, flags: int) -> int:
    """A descriptor of the plain file ``path``, which is created if ``flags`` say so; a link is never followed.

    Args:
        path: the file; links in its folder's path are followed.
        flags: of os.open. Truncate after this call (`os.ftruncate`), not with O_TRUNC.
    Raises:
        PathError: it is a symbolic link, or no plain file.
        OSError: it cannot be opened.
    """
    assert not flags & os.O_TRUNC
    try:
        # Not to block: a named pipe would, until somebody reads it.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_link(path)
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise PathError(f"{path}: is not a plain file; remove it or move it away") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PathError(f"{path}: is not a plain file; remove it or move it away")
    return descriptor


def append_stream(path: Path) -> BinaryIO:
    """A stream that appends to ``path``; see `open_unfollowed` for what it refuses."""
    return os.fdopen(open_unfollowed(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab")


def append_line(path: Path, line: str) -> None:
    """Appends a line and waits for the disk; a last line that a crash cut short does not swallow it.

    Raises:
        PathError: ``path`` is a symbolic link or no plain file.
        OSError: it cannot be written.
    """
    with naming(path), append_stream(path) as stream:
        end = os.fstat(stream.fileno()).st_size
        torn = end > 0 and os.pread(stream.fileno(), 1, end - 1) != b"\n"
        stream.write((b"\n" if torn else b"") + line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Makes renames and removals in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(directory):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until the bytes of ``path`` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(paths: Sequence[Path]) -> None:
    """Waits until the bytes of all of ``paths`` are on the disk; at once, because journals write for all that wait."""
    if len(paths) == 1:
        sync_file(paths[0])
    elif paths:
        with ThreadPoolExecutor(min(len(paths), _SYNCS_AT_ONCE)) as pool:
            list(pool.map(sync_file, paths))


@contextmanager
def atomic_output(path: Path, *, sync: bool = True, replace: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content replaces ``path`` when the block ends; if it ends by an exception nothing changes.

    A reader sees the old file or the new one, never a part. A symbolic link at ``path`` is replaced, its target stays.

    Args:
        path: the file.
        sync: whether a power cut after the block leaves ``path`` whole too. False for the outputs of a task: what
            makes them valid is its manifest, before which they are synced (`pipeline.task.write_manifest`).
        replace: False: the first one stays.
    Raises:
        FileExistsError: ``path`` is there and must not be replaced.
        IsADirectoryError: ``path`` is a folder.
        OSError: the folder cannot be written to or the disk is full; ``path`` is then as it was before.
    """
    descriptor, temporary = temporary_file(path)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        else:
            # Unlike a rename, a link never replaces.
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name for what writes to a path, not to a stream; ends as `atomic_output` does.

    The file may be written in place or replaced by another one: it becomes as widely readable as the user's files are,
    whatever the writer thinks (safetensors and everything else that goes through a temporary file make it private).

    Raises:
        IsADirectoryError: ``path`` is a folder.
        OSError: the folder cannot be written to, or what was to be written is not there.
    """
    descriptor, temporary = temporary_file(path)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    try:
        with naming(path):
            yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content`` as `atomic_output` does."""
    with atomic_output(path) as stream:
        stream.write(content)


def temporary_file(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, `.NAME.XXXXXXXX.tmp`, open for writing, as widely readable as the user's files are.

    Raises:
        OSError: the folder cannot be written to, or ``path`` is a folder, which nothing would replace in the end.
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary
        except FileExistsError:
            continue
        except OSError as error:
            # Nobody knows the temporary name.
            error.filename = str(path)
            raise
