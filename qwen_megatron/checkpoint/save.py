"""Saves a run: every rank writes what it owns, rank 0 adds small state and manifest and renames at the very end.

A save has three parts. The first takes what is to be written: into memory if saving is asynchronous, to disk if not.
When the files of all ranks are on disk, rank 0 learns their sizes and hashes and commits. When it has, the save is
over. Each part begins on all ranks after the same step and with a collective. What takes long is done by a thread in
between: it writes this rank's files, and on rank 0 makes the commit. A thread talks to nobody.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config

from data_tools.io.lock import FileLock
from qwen_megatron.checkpoint.agreement import failing_together
from qwen_megatron.checkpoint.finite import check_before_save
from qwen_megatron.checkpoint.hashed_file import Digest, HashedFile
from qwen_megatron.checkpoint.manifest import (
    FileEntry,
    folder_name,
    hashed,
    publish,
    write_manifest,
    write_synced,
)
from qwen_megatron.checkpoint.retention import Retention
from qwen_megatron.checkpoint.run_lock import check_still_held
from qwen_megatron.checkpoint.run_state import checkpoint_state
from qwen_megatron.checkpoint.sharded_state import saved_tensors
from qwen_megatron.checkpoint.snapshot import Arena, MemoryFileSystem
from qwen_megatron.checkpoint.state import STATE
from qwen_megatron.checkpoint.storage import METADATA_JSON, HashingFileSystem
from qwen_megatron.checkpoint.write_tensors import PlanMemory, write_tensors
from qwen_megatron.errors import CheckpointError
from qwen_megatron.parallel.objects import dict_of, gather
from qwen_megatron.train.run import Run

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run is over; what the background was writing is not wanted any more."""


@dataclass(kw_only=True)
class Save:
    """A save that is not committed yet.

    Attributes:
        final: The checkpoint's folder.
        partial: Where its files are written.
        state: Content of `state.json`, on rank 0.
        started: Clock at the beginning.
        written: This rank's files, as far as they are on disk.
        committing: All ranks have written.
        problem: What went wrong in the thread.
        thread: Works in the background; None if there is nothing to do for this rank.
    """

    final: Path
    partial: Path
    state: bytes
    started: float
    written: dict[str, FileEntry]
    committing: bool = False
    problem: str | None = None
    thread: threading.Thread | None = None

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Does some work in a thread; what goes wrong is kept, to be raised on all ranks."""

        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as error:  # noqa: BLE001 - a thread has nobody above it
                self.problem = str(error) or type(error).__name__

        self.thread = threading.Thread(target=guarded, name="checkpoint writer", daemon=True)
        self.thread.start()


class Saver:
    """Writes the checkpoints of a run, one at a time.

    Args:
        asynchronous: Training goes on while a snapshot in memory is written.
        retention: Removes old checkpoints after a commit.
        new_digest: Makes the hash of each file; another one than sha256 is for measuring only.
        lock: Of the run's folder, on rank 0: nothing is saved where it is lost.
    """

    def __init__(
        self,
        *,
        asynchronous: bool,
        retention: Retention,
        new_digest: Callable[[], Digest] = hashlib.sha256,
        lock: FileLock | None = None,
    ) -> None:
        self.asynchronous = asynchronous
        self.retention = retention
        self.new_digest = new_digest
        self.lock = lock
        self.arena = Arena()
        self.plans = PlanMemory()
        self.pending: Save | None = None
        self.stop = threading.Event()

    def save(self, run: Run) -> None:
        """Saves; collective. An asynchronous save is only begun: it becomes a checkpoint in `poll` or `finish`.

        A save that is under way is waited for and committed first.

        Raises:
            CheckpointError: on every rank, with what went wrong on any. The checkpoints before are untouched.
            NonFiniteError: on every rank, if a weight, master or moment is no number; nothing is written.
        """
        self.finish(run)
        self.begin(run)
        if not self.asynchronous:
            self.finish(run)

    def begin(self, run: Run) -> None:
        """Takes what is to be written: into memory, or to disk."""
        tensors = saved_tensors(run.trainables.values())
        check_before_save(tensors, run.state.iteration, run.groups.rank)
        final = run.directory / folder_name(run.state.iteration)
        partial = final.with_name(f".{final.name}.partial")
        save = Save(final=final, partial=partial, state=b"", started=time.perf_counter(), written={})
        self.pending = save
        try:
            with failing_together():
                if run.is_main:
                    check_still_held(self.lock)
                    shutil.rmtree(partial, ignore_errors=True)
                    # The run's folder itself is made once, when it is locked.
                    partial.mkdir()
                    save.state = checkpoint_state(run).to_json()
            if self.asynchronous:
                memory = MemoryFileSystem(self.arena)
                write_tensors(tensors, partial, memory, self.plans)
                save.start(self.write_files, save, memory.files)
            else:
                files = HashingFileSystem(self.new_digest)
                write_tensors(tensors, partial, files, self.plans)
                save.written = files.written
        except CheckpointError:
            self.discard(run)
            raise

    def write_files(self, save: Save, files: dict[str, list[memoryview]]) -> None:
        """The thread: brings this rank's files to the disk."""
        for name, pieces in files.items():
            file = HashedFile(save.partial / name, self.new_digest)
            try:
                for piece in pieces:
                    if self.stop.is_set():
                        raise Stopped
                    file.write(piece)
                file.close()
                save.written[name] = file.entry
            finally:
                file.abandon()

    def poll(self, run: Run) -> None:
        """Goes on with a save that is under way if no rank's thread is at work; collective, the same on all ranks.

        Raises:
            CheckpointError: as `finish`.
        """
        save = self.pending
        if save is None:
            return
        busy = save.thread is not None and save.thread.is_alive()
        anybody_busy = torch.tensor([busy], dtype=torch.int64, device=run.groups.device)
        dist.all_reduce(anybody_busy, op=dist.ReduceOp.MAX)
        if not anybody_busy.item():
            self.go_on(run, save)

    def finish(self, run: Run) -> None:
        """Waits for a save that is under way until it is a checkpoint; collective.

        Raises:
            CheckpointError: on every rank, naming the file that could not be written on any. Nothing of the save is
                left; the checkpoints before are untouched.
        """
        while self.pending is not None:
            self.go_on(run, self.pending)

    def go_on(self, run: Run, save: Save) -> None:
        """Waits for this rank's thread; then the next part begins, or the save is over."""
        if save.thread is not None:
            save.thread.join()
            save.thread = None
        try:
            with failing_together():
                if save.problem is not None:
                    raise CheckpointError(save.problem)
        except CheckpointError:
            self.discard(run)
            raise
        if save.committing:
            self.pending = None
            if run.is_main:
                log.info("saved %s in %.1f s", save.final, time.perf_counter() - save.started)
            return
        save.committing = True
        written = {name: [entry.size, entry.sha256] for name, entry in save.written.items()}
        gathered = gather(written, dict_of(FileEntry.parse))
        if run.is_main:
            save.start(self.commit, save, {name: entry for files in gathered for name, entry in files.items()})

    def commit(self, save: Save, files: dict[str, FileEntry]) -> None:
        """The thread of rank 0: completes the folder, gives it its name, and removes what is not to be kept."""
        check_still_held(self.lock)
        save_config(CheckpointingConfig("torch_dist", 1), str(save.partial))
        files[METADATA_JSON] = hashed(save.partial / METADATA_JSON)
        files[STATE] = write_synced(save.partial / STATE, save.state)
        write_manifest(save.partial, files)
        publish(save.partial, save.final)
        self.retention.committed(save.final)

    def discard(self, run: Run) -> None:
        """Forgets a save that failed on some rank; its files go."""
        save, self.pending = self.pending, None
        if save is not None and run.is_main:
            shutil.rmtree(save.partial, ignore_errors=True)

    def close(self) -> None:
        """Ends the background, also after an error: no collective. A save under way is lost, its files go."""
        self.retention.wait()
        save, self.pending = self.pending, None
        if save is None:
            return
        self.stop.set()
        if save.thread is not None:
            save.thread.join()
        shutil.rmtree(save.partial, ignore_errors=True)
