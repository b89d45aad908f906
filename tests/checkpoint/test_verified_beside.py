"""Verification beside the work: nobody gets what damaged bytes made, and damage is told before what it has caused."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from qwen_megatron.checkpoint.verified_beside import verified_beside
from qwen_megatron.errors import CheckpointError
from tests.checkpoint.test_version_1 import KEPT

TENSORS = "__1_0.distcp"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(KEPT, tmp_path / "checkpoint"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_whole_checkpoint_lets_the_block_end_as_it_does(checkpoint: Path) -> None:
    with verified_beside(checkpoint) as finish:
        finish()
    with pytest.raises(ZeroDivisionError), verified_beside(checkpoint):
        raise ZeroDivisionError


def test_damage_is_told_when_the_block_waits_for_it(checkpoint: Path) -> None:
    flip_a_bit(checkpoint / TENSORS)
    told = f"{checkpoint / TENSORS}: sha256 is "
    with pytest.raises(CheckpointError, match=told), verified_beside(checkpoint) as finish:
        finish()


def test_damage_is_told_instead_of_what_it_has_caused(checkpoint: Path) -> None:
    flip_a_bit(checkpoint / TENSORS)
    told = f"{checkpoint / TENSORS}: sha256 is "
    with pytest.raises(CheckpointError, match=told) as caught, verified_beside(checkpoint):
        raise ValueError("a tensor cannot be read")
    assert isinstance(caught.value.__context__, ValueError)


@pytest.mark.parametrize("name", [".metadata", "state.json", "metadata.json"])
def test_what_the_block_reads_first_is_verified_before_it(checkpoint: Path, name: str) -> None:
    flip_a_bit(checkpoint / name)
    with pytest.raises(CheckpointError, match=name), verified_beside(checkpoint):
        pytest.fail("the block has begun")


def test_an_interrupt_stays_one_and_leaves_no_thread(checkpoint: Path) -> None:
    flip_a_bit(checkpoint / TENSORS)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), verified_beside(checkpoint):
        raise KeyboardInterrupt
    assert threading.active_count() == before
