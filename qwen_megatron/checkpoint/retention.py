"""Which checkpoints of a run are kept."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from itertools import islice
from pathlib import Path

from data_tools.io.atomic_file import sync_directory
from data_tools.io.owned_paths import remove_files, temporary_of
from qwen_megatron.checkpoint.manifest import FOLDER, list_checkpoints, read_latest, read_manifest
from qwen_megatron.errors import CheckpointError

log = logging.getLogger(__name__)

# Of saves and removals, and of the files that a run replaces as a whole.
HIDDEN_FOLDER = re.compile(r"\.iter_\d{7,}\.(partial|replaced|removed)")
REPLACED_FILES = r"latest|config\.yaml|shims\.txt|completion\.json|failure\.json|metrics\.jsonl|wandb\.json"


class Retention:
    """Removes old checkpoints, on rank 0, whenever a new one is complete.

    What was just committed is the newest verified one, and it always stays; so does what `latest` names.

    Args:
        keep_last: Whole checkpoints kept, the newest ones; None keeps all.
        keep_every: Checkpoints of multiples of this step are kept for good; None for none of them.
    """

    def __init__(self, keep_last: int | None = None, keep_every: int | None = None):
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.removals: list[threading.Thread] = []

    def committed(self, newest: Path) -> None:
        """Removes what is older than the checkpoints to be kept.

        Args:
            newest: The checkpoint that this run has just committed.
        """
        if self.keep_last is None:
            return
        folders = list_checkpoints(newest.parent)
        # No more of them are looked at than are kept: each has a file for every rank that wrote it.
        whole = list(islice((folder for folder in folders if folder == newest or is_whole(folder)), self.keep_last))
        latest = read_latest(newest.parent)
        for folder in folders:
            # A damaged one is no better for being young, but the step may be on its way to be saved again.
            is_old = len(whole) == self.keep_last and step_of(folder) < step_of(whole[-1])
            if is_old and folder not in (newest, *whole) and folder.name != latest and not self.is_milestone(folder):
                self.remove(folder)

    def remove(self, folder: Path) -> None:
        """Takes away the name at once, what a crash leaves behind is no checkpoint; the files go in the background."""
        hidden = folder.with_name(f".{folder.name}.removed")
        try:
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(folder, hidden)
            sync_directory(folder.parent)
        except OSError as error:
            # The run does not depend on it.
            log.warning("%s: cannot be removed: %s", folder, error)
            return
        log.info("removed %s", folder)
        # Gigabytes take a second, for which all ranks would wait.
        self.removals.append(threading.Thread(target=shutil.rmtree, args=(hidden, True), daemon=True))
        self.removals[-1].start()

    def wait(self) -> None:
        """Until the files of everything removed are gone."""
        while self.removals:
            self.removals.pop().join()

    def is_milestone(self, folder: Path) -> bool:
        """Whether the checkpoint is of a step that is kept for good."""
        return self.keep_every is not None and step_of(folder) % self.keep_every == 0


def remove_leftovers(directory: Path) -> None:
    """Removes what saves and removals of a killed run have left behind; only while the run's lock is held."""
    for path in directory.glob(".iter_*"):
        if HIDDEN_FOLDER.fullmatch(path.name):
            # Not through a link, which rmtree refuses.
            shutil.rmtree(path, ignore_errors=True)
    remove_files(directory, temporary_of(REPLACED_FILES))


def is_whole(folder: Path) -> bool:
    """Whether the manifest and every file it lists are there, with their sizes."""
    try:
        read_manifest(folder)
    except (CheckpointError, OSError):
        return False
    return True


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    match = FOLDER.fullmatch(folder.name)
    assert match is not None
    return int(match[1])
