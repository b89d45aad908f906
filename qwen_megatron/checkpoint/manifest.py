"""The manifest: size and sha256 of every file of a checkpoint, written last; without it there is no checkpoint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.io.atomic_file import sync_directory, write_atomically
from data_tools.io.small_json import MissingFileError, SmallFileError, build, kind_of, read_bytes, read_object, shown
from qwen_megatron.errors import CheckpointError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LATEST = "latest"
# Far more than the name of a folder.
LATEST_BYTES = 4096
# End of the hidden name of a checkpoint whose step is saved again.
REPLACED = ".replaced"
FORMAT = "qwen-megatron checkpoint"
# Version 2: models in it have names. Version 1 is still read.
VERSION = 2
FOLDER = re.compile(r"iter_(\d{7,})")
FILE_NAME = re.compile(r"[A-Za-z0-9_.]+")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file: bytes and sha256 in hex."""

    size: int
    sha256: str

    @classmethod
    def parse(cls, pair: Any) -> FileEntry:
        """The entry that another rank sent as `[size, sha256]`.

        Raises:
            ValueError, TypeError: if it is none.
        """
        size, sha256 = pair
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            raise ValueError("neither size nor sha256 of a file")
        return cls(size, sha256)


def folder_name(iteration: int) -> str:
    """`iter_0000100`."""
    return f"iter_{iteration:07d}"


def write_manifest(folder: Path, files: dict[str, FileEntry]) -> None:
    """Writes the manifest of a folder whose other files are all on disk."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "files": {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in sorted(files.items())},
    }
    write_synced(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """The files of a checkpoint, their presence and sizes checked: for one process, it looks at every file.

    Raises:
        CheckpointError: naming the file that is missing, garbled or of another size.
    """
    files = listed_files(folder)
    check_sizes(folder, files, files)
    return files


def listed_files(folder: Path) -> dict[str, FileEntry]:
    """What the manifest says of a checkpoint's files; none of them is looked at.

    Raises:
        CheckpointError: if the manifest is missing or garbled, or names what is no plain file name.
    """
    path = folder / MANIFEST
    try:
        content = read_object(path)
        if content.get("format") != FORMAT or content.get("version") not in (1, VERSION):
            form, version = shown(content.get("format")), shown(content.get("version"))
            raise CheckpointError(f"{path}: is version {version} of {form}, not 1 or {VERSION} of '{FORMAT}'")
        files = {name: build(FileEntry, entry, f"{path}: {name}") for name, entry in entries_of(content, path).items()}
    except MissingFileError as error:
        latest = read_latest(folder)
        advice = f"name one of the checkpoints in it, such as {folder / latest}" if latest else "name another one"
        raise CheckpointError(f"{path}: missing, so {folder} is not a complete checkpoint; {advice}") from error
    except SmallFileError as error:
        raise CheckpointError(f"{path}: not a readable manifest ({error}); the checkpoint cannot be trusted") from error
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{path}: names a file {name!r}; only plain file names are allowed")
    return files


def check_sizes(folder: Path, files: Mapping[str, FileEntry], names: Iterable[str]) -> None:
    """Compares presence and size of the named files with the manifest.

    Raises:
        CheckpointError: naming the first file that is missing, no file, or of another size.
    """
    for name in names:
        problem = size_problem(folder, name, files[name])
        if problem:
            raise CheckpointError(problem)


def size_problem(folder: Path, name: str, entry: FileEntry) -> str:
    """What is wrong with the presence or size of a file; empty if nothing is."""
    try:
        found = (folder / name).stat()
    except OSError:
        return f"{folder / name}: missing, the manifest lists it with {entry.size} bytes"
    if not stat.S_ISREG(found.st_mode):
        return f"{folder / name}: is not a file, as the manifest says"
    if found.st_size != entry.size:
        return f"{folder / name}: has {found.st_size} bytes, the manifest says {entry.size}"
    return ""


def entries_of(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a manifest says of each file, unchecked."""
    files = content.get("files")
    if not isinstance(files, dict):
        raise SmallFileError(f"{path}: files must be an object, not {kind_of(files)}")
    return files


def verify_files(folder: Path, files: dict[str, FileEntry], names: Iterable[str]) -> None:
    """Reads the named files and compares their sha256.

    Raises:
        CheckpointError: naming the first file that differs, with both hashes.
    """
    for name in names:
        with (folder / name).open("rb") as stream:
            check_sha256(folder / name, hashlib.file_digest(stream, "sha256").hexdigest(), files[name])


def check_sha256(path: Path, actual: str, entry: FileEntry) -> None:
    """Compares a file's sha256 with the manifest.

    Raises:
        CheckpointError: naming the file, with both hashes.
    """
    if actual != entry.sha256:
        raise CheckpointError(f"{path}: sha256 is {actual}, the manifest says {entry.sha256}; the file is damaged")


def write_synced(path: Path, content: bytes) -> FileEntry:
    """Writes a file under a random temporary name, syncs it and renames it; a link at `path` is replaced."""
    try:
        write_atomically(path, content)
    except OSError as error:
        # A write does not say which file it was for.
        error.filename = error.filename or str(path)
        raise
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def hashed(path: Path) -> FileEntry:
    """Size and sha256 of a small file, synced to disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return FileEntry(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def publish(partial: Path, final: Path) -> None:
    """Gives a finished folder its name and lets `latest` say so."""
    if final.exists():
        # The same step saved again, by a run that went on from an older checkpoint.
        discarded = final.with_name(f".{final.name}{REPLACED}")
        shutil.rmtree(discarded, ignore_errors=True)
        os.replace(final, discarded)
        os.replace(partial, final)
        shutil.rmtree(discarded, ignore_errors=True)
    else:
        os.replace(partial, final)
    sync_directory(final.parent)
    try:
        write_synced(final.parent / LATEST, (final.name + "\n").encode())
    except IsADirectoryError:
        log.warning("%s: is a folder, so it cannot name the newest checkpoint; remove it", final.parent / LATEST)


def restore_replaced(directory: Path) -> None:
    """Gives back their names to checkpoints of a run that was killed between the two renames of `publish`.

    Only while the run's lock is held.
    """
    for discarded, final in replaced(directory):
        os.replace(discarded, final)


def replaced(directory: Path) -> list[tuple[Path, Path]]:
    """Checkpoints that a killed run has left without their name, and the name."""
    named = [
        (path, path.with_name(path.name.removeprefix(".").removesuffix(REPLACED)))
        for path in directory.glob(f".iter_*{REPLACED}")
    ]
    return [(path, final) for path, final in named if FOLDER.fullmatch(final.name) and not final.exists()]


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoint folders of a run, the newest first, whole or not."""
    found = [(int(match[1]), path) for path in directory.glob("iter_*") if (match := FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def read_latest(directory: Path) -> str | None:
    """What the `latest` file names, None if there is no such file.

    It is a hint for people, so whatever else stands there under this name is told and otherwise taken for nothing.
    """
    try:
        return read_bytes(directory / LATEST, LATEST_BYTES).decode("utf-8", errors="replace").strip()
    except MissingFileError:
        return None
    except SmallFileError as error:
        log.warning("%s; looking at the folders instead", error)
        return None


def check_latest(directory: Path, names: list[str]) -> None:
    """Refuses a run's folder whose checkpoints are gone.

    Raises:
        CheckpointError: if `latest` names a checkpoint and none is here.
    """
    latest = read_latest(directory)
    if latest is not None and not names:
        raise CheckpointError(
            f"{directory}: `latest` names {latest!r}, but there is no checkpoint here any more; put it back, or remove "
            f"{directory / LATEST} to start from nothing"
        )
    if latest is not None and latest not in names:
        log.warning(
            "%s: names %r, which is no checkpoint here; looking at the folders instead", directory / LATEST, latest
        )


def none_whole(directory: Path, problems: Sequence[str]) -> CheckpointError:
    """The error of a run that has checkpoints, none of them whole: to start anew would lose it without a word."""
    return CheckpointError(
        f"{directory}: none of its {len(problems)} checkpoints is whole:\n  " + "\n  ".join(problems) + "\n"
        "Repair one, or start over with checkpoint.load=none and another checkpoint.directory"
    )
