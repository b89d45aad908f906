"""Putting a corpus in its place: prepared in a temporary folder next to it and renamed, the sidecar last."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_tools.corpus.sidecar import Sidecar, corpus_path
from data_tools.io.atomic_file import sync_directory
from data_tools.io.owned_paths import remove_files, remove_tree, temporary_of

TOKEN_DTYPE = np.dtype("<i4")
_DATA_SUFFIXES = ("bin", "idx", "crc")


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
    remove_files(target.parent, temporary_of(rf"{name}\.(?:json|rejected\.jsonl)"))
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
