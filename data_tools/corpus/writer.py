"""Putting a corpus in its place: prepared in a temporary folder next to it and renamed, the sidecar last."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_tools.corpus.sidecar import Sidecar, corpus_path
from data_tools.errors import RefusedError
from data_tools.io.atomic_file import sync_directory
from data_tools.io.owned_paths import remove_files, remove_tree, temporary_of

TOKEN_DTYPE = np.dtype("<i4")
_DATA_SUFFIXES = ("bin", "idx", "crc")


def prepare_place(prefix: str | Path) -> None:
    """Makes the folder that a corpus is going to be in.

    Raises:
        RefusedError: ``prefix`` names a folder, or a part of its path is a file.
    """
    if str(prefix).endswith(os.sep) or Path(prefix).name in ("", ".", ".."):
        raise RefusedError(f"{prefix}: names a folder; a corpus needs a file name too, as in {Path(prefix) / 'corpus'}")
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RefusedError(
            f"{prefix}: cannot be in {error.filename}, which is a file and not a folder; choose another --output"
        ) from error


def require_absent(prefix: str | Path, *, overwrite: bool) -> None:
    """Lets a prefix pass that has no corpus yet, or one that may be replaced.

    Raises:
        RefusedError: there is a file of a corpus, and it must not be replaced.
    """
    present = [str(path) for suffix in ("json", *_DATA_SUFFIXES) if (path := corpus_path(prefix, suffix)).exists()]
    if present and not overwrite:
        raise RefusedError(f"{', '.join(present)}: already there; use --overwrite to replace it, or another --output")


@contextmanager
def scratch_folder(prefix: str | Path) -> Iterator[Path]:
    """A folder next to the corpus, removed at the end whatever happens.

    What killed runs on the same prefix left behind is removed first; the caller holds the corpus lock.
    """
    target = Path(prefix)
    pattern = f".{target.name}.scratch-"
    name = re.escape(target.name)
    scratch = re.compile(rf"\.{name}\.scratch-[a-z0-9_]+")
    for stale in target.parent.iterdir():
        if scratch.fullmatch(stale.name) and stale.is_dir() and not stale.is_symlink():
            remove_tree(stale, target.parent)
    remove_files(target.parent, temporary_of(rf"{name}\.(?:(?:targets\.)?json|rejected\.jsonl)"))
    folder = Path(tempfile.mkdtemp(prefix=pattern, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def publish(folder: Path, prefix: str | Path, sidecar: Sidecar) -> None:
    """Moves the files of ``folder`` to their names and writes the sidecar.

    The old sidecar goes first and the new one comes last: a run that is killed in between leaves no corpus rather
    than a mixed one.
    """
    corpus_path(prefix, "json").unlink(missing_ok=True)
    for suffix in _DATA_SUFFIXES:
        corpus_path(folder / "corpus", suffix).replace(corpus_path(prefix, suffix))
    sync_directory(Path(prefix).parent)
    sidecar.write(corpus_path(prefix, "json"))
