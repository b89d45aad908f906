"""Saves a run: tensors by all ranks, small state and manifest by rank 0, a rename at the very end."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing

from qwen_megatron.checkpoint.contents import STATE, sharded_tensors, small_state
from qwen_megatron.checkpoint.manifest import (
    LATEST,
    FileEntry,
    folder_name,
    sync_folder,
    write_manifest,
    write_synced,
)
from qwen_megatron.checkpoint.storage import HashingSaveStrategy
from qwen_megatron.train.run import Run

# Written by Megatron-Core on rank 0, besides what our writer hashes.
MEGATRON_FILES = ("common.pt", "metadata.json")


def save_checkpoint(run: Run) -> Path:
    """Writes `iter_NNNNNNN/` in the run's folder; collective.

    Files are written under a hidden name and carry their checksums; the folder gets its name when all is on disk.

    Returns:
        The checkpoint's folder.
    """
    final = run.directory / folder_name(run.state.iteration)
    partial = final.with_name(f".{final.name}.partial")
    if run.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    strategy = HashingSaveStrategy()
    with run.engine.whole_parameters():
        tensors = sharded_tensors(run.engine, is_loading=False)
        dist_checkpointing.save(tensors, str(partial), sharded_strategy=strategy)
    gathered: list[dict[str, FileEntry]] | None = [{}] * run.engine.groups.world_size if run.is_main else None
    dist.gather_object(strategy.written, gathered)
    if gathered is not None:
        files = {name: entry for written in gathered for name, entry in written.items()}
        files |= {name: hashed(partial / name) for name in MEGATRON_FILES}
        files[STATE] = write_synced(partial / STATE, small_state(run).to_json())
        write_manifest(partial, files)
        publish(partial, final)
    dist.barrier()
    return final


def hashed(path: Path) -> FileEntry:
    """Size and sha256 of a small file, synced to disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        return FileEntry(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def publish(partial: Path, final: Path) -> None:
    """Gives a finished folder its name and lets `latest` say so."""
    if final.exists():
        # The same step saved again, by a run that went on from an older checkpoint.
        discarded = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(discarded, ignore_errors=True)
        os.replace(final, discarded)
        os.replace(partial, final)
        shutil.rmtree(discarded, ignore_errors=True)
    else:
        os.replace(partial, final)
    sync_folder(final.parent)
    write_synced(final.parent / LATEST, (final.name + "\n").encode())
