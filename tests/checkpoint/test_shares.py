"""What a rank looks at of a checkpoint: its share, however many files there are."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

from qwen_megatron.checkpoint.choice import READ_BY_ALL, View, manifest_hash, share_of
from qwen_megatron.checkpoint.manifest import FileEntry, write_manifest
from qwen_megatron.checkpoint.retention import Retention
from tests.checkpoint.test_choice import choose, write_checkpoint
from tests.support.ranks import RankFailed, RankPool
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks

NAMES = (*READ_BY_ALL, *(f"__{rank}_0.distcp" for rank in range(40)))


def folder_of(num_files: int, folder: Path) -> Path:
    """A manifest and files of one byte, as many ranks would have written them."""
    folder.mkdir()
    names = [*READ_BY_ALL, *(f"__{rank}_0.distcp" for rank in range(num_files))]
    for name in names:
        (folder / name).write_bytes(b"x")
    write_manifest(folder, dict.fromkeys(names, FileEntry(1, hashlib.sha256(b"x").hexdigest())))
    return folder


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 40, 64])
def test_shares_cover_all_files_and_no_shard_twice(world_size: int) -> None:
    shares = [share_of(NAMES, rank, world_size) for rank in range(world_size)]
    shards = [name for share in shares for name in share if name not in READ_BY_ALL]
    assert sorted(shards) == sorted(set(NAMES).difference(READ_BY_ALL))
    assert all(set(READ_BY_ALL) <= set(share) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("num_ranks", [8, 64, 512])
def test_a_rank_looks_at_as_many_files_however_many_there_are(
    num_ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of as many ranks as load it: one shard each, and what all of them read."""
    folder = folder_of(num_ranks, tmp_path / "iter_0000001")
    manifest = manifest_hash(folder)
    looked: list[str] = []
    stat = os.stat

    def counted(path: str | os.PathLike[str], **options: bool) -> os.stat_result:
        looked.append(Path(path).name)
        return stat(path, **options)  # type: ignore[arg-type]

    for rank in (0, 1, num_ranks - 1):
        view = View(folder, manifest, rank, num_ranks)
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", counted)
            assert view.look() == ("", "")
        assert len(looked) <= len(READ_BY_ALL) + 1 + 1  # And the manifest.
        looked.clear()


def test_only_kept_checkpoints_are_looked_at_after_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [folder_of(2, tmp_path / f"iter_000000{step}") for step in range(1, 9)]
    looked: list[str] = []

    def counted(folder: Path) -> bool:
        looked.append(folder.name)
        return True

    monkeypatch.setattr("qwen_megatron.checkpoint.retention.is_whole", counted)
    retention = Retention(keep_last=2, keep_every=1)
    retention.committed(folders[-1])
    assert looked == ["iter_0000007"]


@pytest.mark.parametrize("missing", range(4))
def test_a_shard_that_nobody_has_is_damage_whoever_looks_for_it(missing: int, ranks: RankPool, tmp_path: Path) -> None:
    """At once, without waiting for it to appear."""
    for step in (2, 4):
        write_checkpoint(tmp_path / f"iter_000000{step}")
        for rank in (2, 3):
            (tmp_path / f"iter_000000{step}" / f"__{rank}_0.distcp").write_text(str(rank))
        folder = tmp_path / f"iter_000000{step}"
        (folder / "manifest.json").unlink()
        entries = {
            path.name: FileEntry(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in folder.iterdir()
        }
        write_manifest(folder, entries)
    (tmp_path / "iter_0000004" / f"__{missing}_0.distcp").unlink()
    started = time.monotonic()
    assert choose(ranks, *[tmp_path] * 4, patience=600.0) == [str(tmp_path / "iter_0000002")] * 4
    assert time.monotonic() - started < 150


def own_folder_job(overrides: list[str], own: list[str]) -> None:
    """Each rank loads from a folder of its own."""
    pretrain_job([*overrides, f"checkpoint.load={own[int(os.environ['RANK'])]}"])


def test_a_shard_that_only_its_reader_does_not_see(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """Rank 0 has verified it, rank 1 needs it: all ranks end, and say who does not see what."""
    pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "new", "training.exit_iter=2")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (tmp_path / "old" / "iter_0000002" / "__0_0.distcp").unlink()
    overrides = [*SMALL, f"data.blend=[{byte_corpus}]", "training.exit_iter=4"]
    overrides += [f"checkpoint.directory={tmp_path / 'continued'}"]
    own = [str(tmp_path / name / "iter_0000002") for name in ("new", "old")]
    with pytest.raises(RankFailed, match=r"UnseenCheckpoint: \S+iter_0000002.* by rank 1: .*__0_0\.distcp"):
        ranks.run(2, own_folder_job, overrides=overrides, own=own)
    assert not list((tmp_path / "continued").glob("iter_*"))
