"""Files appear whole or not at all: temporary name in the same folder, fsync, rename."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_SYNCS_AT_ONCE = 8


def sync_directory(directory: Path) -> None:
    """Makes renames and removals in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until the bytes of ``path`` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
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
def atomic_output(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content replaces ``path`` when the block ends; if it ends by an exception nothing changes.

    A reader sees the old file or the new one, never a part.

    Args:
        path: the file.
        sync: whether a power cut after the block leaves ``path`` whole too. False for the outputs of a task: what
            makes them valid is its manifest, before which they are synced (`pipeline.task.write_manifest`).
    Raises:
        OSError: the folder cannot be written to or the disk is full; ``path`` is then as it was before.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        # mkstemp gives 0600; the file is meant to be read as widely as any other the user writes.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content`` as `atomic_output` does."""
    with atomic_output(path) as stream:
        stream.write(content)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
