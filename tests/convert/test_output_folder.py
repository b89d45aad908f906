"""Where a converted model goes: a model alone is replaced, everything else stays, one conversion at a time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.convert.output_folder import check_replaceable, output_folder
from qwen_megatron.errors import CheckpointError

HF = ("config.json", "model.safetensors", "tokenizer.json")
CHECKPOINT = ("manifest.json", "state.json", "metadata.json", ".metadata", "__0_0.distcp")


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("held", [HF, CHECKPOINT, ("config.json", "model-00001-of-00002.safetensors"), ()])
def test_a_model_and_an_empty_folder_are_replaced(held: tuple[str, ...], tmp_path: Path) -> None:
    out = make(tmp_path / "out", *held)
    with output_folder(out, overwrite=True) as folder:
        make(folder, "new")
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("held", "foreign"),
    [
        (("config.json",), "main.py"),
        (HF, "notes.txt"),
        (HF, "train.py"),
        (HF, ".git"),
        (HF, "manifest.json"),
        (CHECKPOINT, "config.json"),
        (CHECKPOINT, "thesis.tex"),
    ],
)
def test_a_folder_with_anything_else_is_not(held: tuple[str, ...], foreign: str, tmp_path: Path) -> None:
    out = make(tmp_path / "out", *held, foreign)
    with (
        pytest.raises(CheckpointError, match=r"is no part of the model in that folder|does not hold a model"),
        output_folder(out, overwrite=True),
    ):
        pytest.fail("went on")
    assert names(out) == sorted([*held, foreign])


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_names_of_a_model_that_are_no_files_are_foreign(kind: str, tmp_path: Path) -> None:
    out = make(tmp_path / "out", *HF)
    if kind == "folder":
        (out / "vocab.json").mkdir()
    else:
        (out / "vocab.json").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=r"vocab\.json: is no part of the model"):
        check_replaceable(out, overwrite=True)


def test_what_comes_while_a_model_is_written_stays(tmp_path: Path) -> None:
    out = make(tmp_path / "out", *HF)
    with (
        pytest.raises(CheckpointError, match=r"notes\.txt: is no part of the model"),
        output_folder(out, overwrite=True),
    ):
        make(out, "notes.txt")
    assert names(out) == sorted([*HF, "notes.txt"])
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", [".out.partial", ".out.replaced", ".out.lock", ".out.partial-00000000"])
def test_links_and_folders_of_hidden_names_are_not_ours(name: str, tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere", "victim")
    (tmp_path / name).symlink_to(elsewhere / "victim" if name == ".out.lock" else elsewhere)
    if name == ".out.lock":
        with (
            pytest.raises(CheckpointError, match=r"\.out\.lock: is a symbolic link"),
            output_folder(tmp_path / "out", overwrite=False),
        ):
            pytest.fail("went on")
    else:
        with output_folder(tmp_path / "out", overwrite=False) as folder:
            make(folder, "new")
    assert (elsewhere / "victim").read_text() == "victim"
    assert (tmp_path / name).is_symlink()


def hold(out: Path, started: Any, end: Any) -> None:
    with output_folder(out, overwrite=False) as folder:
        make(folder, "first")
        started.set()
        end.wait(60)


def test_two_conversions_into_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, end = context.Event(), context.Event()
    out = tmp_path / "out"
    first = context.Process(target=hold, args=(out, started, end))
    first.start()
    assert started.wait(60)
    try:
        with (
            pytest.raises(CheckpointError, match=f"process {first.pid} on .* is making it"),
            output_folder(out, overwrite=True),
        ):
            pytest.fail("went on")
    finally:
        end.set()
        first.join(60)
    assert names(out) == ["first"]
    assert names(tmp_path) == ["out"]


def test_a_killed_conversion_leaves_the_model_before(tmp_path: Path) -> None:
    out = make(tmp_path / "out", *HF)
    # Killed between the two renames.
    out.rename(tmp_path / ".out.replaced-0a1b2c3d")
    make(tmp_path / ".out.partial-0a1b2c3d", "half")
    with pytest.raises(CheckpointError, match="exists"), output_folder(out, overwrite=False):
        pytest.fail("went on")
    assert names(out) == sorted(HF)
    assert names(tmp_path) == ["out"]
