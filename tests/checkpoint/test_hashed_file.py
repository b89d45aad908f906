"""Files that are hashed while they are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from qwen_megatron.checkpoint.hashed_file import PIECE_BYTES, DirectHashedFile, HashedFile
from qwen_megatron.checkpoint.manifest import FileEntry
from qwen_megatron.checkpoint.snapshot import BLOCK_BYTES, Arena
from qwen_megatron.errors import CheckpointError


@pytest.mark.parametrize("kind", [HashedFile, DirectHashedFile])
def test_size_and_hash_are_those_on_disk(tmp_path: Path, kind: type[HashedFile | DirectHashedFile]) -> None:
    parts = [b"a", os.urandom(PIECE_BYTES + 5), b"", os.urandom(100), os.urandom(9 * PIECE_BYTES)]
    file = kind(tmp_path / "file")
    for part in parts:
        file.write(part)
    file.close()
    content = b"".join(parts)
    assert (tmp_path / "file").read_bytes() == content
    assert file.entry == FileEntry(len(content), hashlib.sha256(content).hexdigest())


def test_an_arena_gives_back_what_was_written_and_keeps_its_memory() -> None:
    arena = Arena()
    for content in (os.urandom(BLOCK_BYTES + 3), os.urandom(1000)):
        arena.clear()
        arena.write(content[:7])
        arena.write(content[7:])
        assert b"".join(bytes(piece) for piece in arena.pieces()) == content
        assert arena.tell() == len(content)
        assert len(arena.blocks) == 2


def test_a_full_disk_names_the_file_and_what_fitted(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    file = HashedFile(tmp_path / "full")
    with pytest.raises(CheckpointError, match=r"full: cannot be written \(No space left on device, after 0 bytes\)"):
        file.write(b"x" * 100)
    file.abandon()


def test_a_full_disk_is_told_when_the_disk_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    file = DirectHashedFile(tmp_path / "full")
    file.write(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"full: cannot be written \(No space left on device, after 100 bytes\)"):
        file.close()
    assert file.error is not None
    file.abandon()


@pytest.mark.parametrize("kind", [HashedFile, DirectHashedFile])
def test_a_folder_without_permission_is_named(tmp_path: Path, kind: type[HashedFile | DirectHashedFile]) -> None:
    with pytest.raises(CheckpointError, match=r"missing/file: cannot be written \(No such file or directory"):
        kind(tmp_path / "missing" / "file")
