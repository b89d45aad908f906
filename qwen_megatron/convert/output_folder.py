"""A converted model appears whole or not at all: written under another name, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_tools.errors import PathError
from data_tools.io.atomic_file import sync_directory, sync_file
from data_tools.io.lock import FileLock, HeldError
from qwen_megatron.checkpoint.manifest import MANIFEST
from qwen_megatron.errors import CheckpointError, OutputRefused

# What the converters write. A folder is a model that may be replaced if it holds the marks and nothing but such files.
CHECKPOINT_FILES = re.compile(r"manifest\.json|state\.json|metadata\.json|\.metadata|__\d+_\d+\.distcp")
HF_FILES = re.compile(
    r"config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|vocab\.json|merges\.txt|qwen\.tiktoken|README\.md"
)
WEIGHTS_SUFFIX = ".safetensors"


@contextlib.contextmanager
def output_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into; it becomes `out` when the block ends, and is removed if the block fails.

    Args:
        out: The folder to make; its parent is made too.
        overwrite: Replace a model that is already there.
    Raises:
        OutputRefused: if `out` exists and may not be replaced.
        CheckpointError: if another process is making it.
        OSError: if the disk is full or the parent cannot be written to.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with held(out):
        remove_leftovers(out)
        check_replaceable(out, overwrite=overwrite)
        partial = hidden(out, "partial")
        partial.mkdir()
        try:
            yield partial
            for path in partial.iterdir():
                sync_file(path)
            sync_directory(partial)
            # Hours later somebody may have put something there.
            check_replaceable(out, overwrite=overwrite)
            publish(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """Refuses to write over anything the user did not mean.

    Raises:
        OutputRefused: if there is something, and it is no model or more than one, or `overwrite` is not given.
    """
    if Path.cwd().is_relative_to(os.path.abspath(out)):
        # Replacing it would leave every shell that is in it in a folder that is gone.
        raise OutputRefused(f"{out}: is the current folder or holds it; name a folder of its own, such as ./export")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputRefused(f"{out}: exists; choose another name, or replace it with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise OutputRefused(f"{out}: is not a folder, --overwrite does not replace it; choose another name")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    if MANIFEST in names:
        own = CHECKPOINT_FILES
    elif "config.json" in names and any(name.endswith(WEIGHTS_SUFFIX) for name in names):
        own = HF_FILES
    else:
        raise OutputRefused(f"{out}: does not hold a model, --overwrite does not replace it; choose another name")
    for name in names:
        path = out / name
        if not own.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise OutputRefused(
                f"{path}: is no part of the model in that folder, which --overwrite would remove; move it away, or "
                "choose another name for the output"
            )


def publish(partial: Path, out: Path) -> None:
    """Gives the folder its name; what had it before is removed."""
    replaced = hidden(out, "replaced")
    if out.exists():
        os.replace(out, replaced)
    os.replace(partial, out)
    sync_directory(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def hidden(out: Path, what: str) -> Path:
    """A name beside `out` that nothing has."""
    return out.with_name(f".{out.name}.{what}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Keeps other conversions out.

    Raises:
        CheckpointError: if another process is making the same folder.
    """
    try:
        lock = FileLock(out.with_name(f".{out.name}.lock"))
    except HeldError as error:
        raise CheckpointError(f"{out}: {error.holder} is making it; wait for it, or choose another name") from error
    except PathError as error:
        raise CheckpointError(str(error)) from error
    try:
        yield
    finally:
        lock.release(remove=True)


def remove_leftovers(out: Path) -> None:
    """Removes what a killed conversion left, and gives its name back to a model that was about to be replaced."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(partial|replaced)-[0-9a-f]{{8}}")
    for path in out.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        if match[1] == "replaced" and not os.path.lexists(out):
            os.replace(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)
