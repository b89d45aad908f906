"""What is kept and what is removed when a checkpoint is complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen_megatron.checkpoint.load import find_newest
from qwen_megatron.checkpoint.manifest import (
    LATEST,
    folder_name,
    hashed,
    list_checkpoints,
    publish,
    restore_replaced,
    write_manifest,
)
from qwen_megatron.checkpoint.retention import Retention, remove_leftovers, step_of
from qwen_megatron.errors import CheckpointError


def write(directory: Path, step: int) -> Path:
    folder = directory / folder_name(step)
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    write_manifest(folder, {"state.json": hashed(folder / "state.json")})
    (directory / LATEST).write_text(folder.name + "\n")
    return folder


def committed(newest: Path, keep_last: int | None, keep_every: int | None = None) -> None:
    retention = Retention(keep_last, keep_every)
    retention.committed(newest)
    retention.wait()


def kept(directory: Path) -> list[int]:
    assert not list(directory.glob(".*"))
    return sorted(step_of(folder) for folder in list_checkpoints(directory))


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "expected"),
    [
        (None, None, [2, 4, 6, 8, 10]),
        (None, 4, [2, 4, 6, 8, 10]),
        (1, None, [10]),
        (2, None, [8, 10]),
        (2, 4, [4, 8, 10]),
        (9, 2, [2, 4, 6, 8, 10]),
    ],
)
def test_the_newest_and_the_milestones_stay(
    keep_last: int | None, keep_every: int | None, expected: list[int], tmp_path: Path
) -> None:
    for step in (2, 4, 6, 8, 10):
        newest = write(tmp_path, step)
        committed(newest, keep_last, keep_every)
    assert kept(tmp_path) == expected


def test_a_damaged_one_is_not_counted_and_goes_when_it_is_old(tmp_path: Path) -> None:
    folders = {step: write(tmp_path, step) for step in (2, 4, 6, 8)}
    (folders[6] / "state.json").unlink()
    committed(folders[8], 2)
    assert kept(tmp_path) == [4, 6, 8]
    committed(folders[8], 1)
    assert kept(tmp_path) == [8]


def test_what_latest_names_stays(tmp_path: Path) -> None:
    folders = {step: write(tmp_path, step) for step in (2, 4, 6)}
    (tmp_path / LATEST).write_text(f"{folders[2].name}\n")
    committed(folders[6], 1)
    assert kept(tmp_path) == [2, 6]


def test_going_on_from_an_older_one_never_removes_what_was_just_saved(tmp_path: Path) -> None:
    """A run that went back to step 2 saves step 4 beside the steps 6 and 8 of its past."""
    for step in (2, 6, 8):
        write(tmp_path, step)
    newest = write(tmp_path, 4)
    committed(newest, 2)
    assert kept(tmp_path) == [4, 6, 8]


def test_what_a_crash_left_is_removed_and_is_no_checkpoint(tmp_path: Path) -> None:
    whole = write(tmp_path, 2)
    write(tmp_path, 4).rename(tmp_path / ".iter_0000004.removed")
    (tmp_path / ".iter_0000006.partial").mkdir()
    assert list_checkpoints(tmp_path) == [whole]
    remove_leftovers(tmp_path)
    assert kept(tmp_path) == [2]


def test_killed_between_the_renames_of_a_step_saved_again_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = write(tmp_path, 4)
    partial = write(tmp_path, 6).rename(tmp_path / ".iter_0000004.partial")
    replace, calls = os.replace, []

    def killed_at_the_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        publish(partial, only)
    monkeypatch.undo()
    assert list_checkpoints(tmp_path) == []
    restore_replaced(tmp_path)
    remove_leftovers(tmp_path)
    assert list_checkpoints(tmp_path) == [only]


def test_a_run_whose_checkpoints_have_gone_does_not_start_from_nothing(tmp_path: Path) -> None:
    assert find_newest(tmp_path) is None
    (tmp_path / "latest").write_text("iter_0000004\n")
    with pytest.raises(CheckpointError, match=r"names 'iter_0000004', but there is no checkpoint here any more"):
        find_newest(tmp_path)
