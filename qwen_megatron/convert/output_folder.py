"""A converted model appears whole or not at all: written under another name, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_tools.atomic_file import sync_directory, sync_file
from qwen_megatron.checkpoint.manifest import MANIFEST
from qwen_megatron.errors import CheckpointError

# One of these makes a folder a model that may be replaced.
MARKS = ("config.json", MANIFEST)


@contextlib.contextmanager
def output_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into; it becomes `out` when the block ends, and is removed if the block fails.

    Args:
        out: The folder to make; its parent is made too.
        overwrite: Replace a model that is already there.
    Raises:
        CheckpointError: if `out` exists and may not be replaced.
    """
    check_replaceable(out, overwrite=overwrite)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.iterdir():
            sync_file(path)
        sync_directory(partial)
        publish(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """Refuses to write over anything the user did not mean.

    Raises:
        CheckpointError: if there is something, and it is no model or `overwrite` is not given.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise CheckpointError(f"{out}: exists; choose another name, or replace it with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise CheckpointError(f"{out}: is not a folder, --overwrite does not replace it; choose another name")
    if any(out.iterdir()) and not any((out / mark).is_file() for mark in MARKS):
        raise CheckpointError(f"{out}: does not hold a model, --overwrite does not replace it; choose another name")


def publish(partial: Path, out: Path) -> None:
    """Gives the folder its name."""
    replaced = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.replace(out, replaced)
    os.replace(partial, out)
    sync_directory(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
