"""Verification beside the work: nobody gets what damaged bytes made, and damage is told before what it has caused."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen_megatron.checkpoint import verified_beside as verified_beside_module
from qwen_megatron.checkpoint.verified_beside import PartlyHashed, verified_beside
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
    with verified_beside(checkpoint) as verification:
        verification.wait()
    with pytest.raises(ZeroDivisionError), verified_beside(checkpoint):
        raise ZeroDivisionError


def test_damage_is_told_when_the_block_waits_for_it(checkpoint: Path) -> None:
    flip_a_bit(checkpoint / TENSORS)
    told = f"{checkpoint / TENSORS}: sha256 is "
    with pytest.raises(CheckpointError, match=told), verified_beside(checkpoint) as verification:
        verification.wait()


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


def content_of(checkpoint: Path, name: str = TENSORS) -> bytes:
    return (checkpoint / name).read_bytes()


def verify(checkpoint: Path, *seen: tuple[str, int, memoryview], change: Callable[[], object] = lambda: None) -> None:
    """Verifies a checkpoint beside a block that reads this, after a change of the files."""
    with verified_beside(checkpoint) as verification:
        change()
        for one in seen:
            verification.saw(*one)
        verification.wait()


def read_by_itself(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What the verification reads: file, first byte, number of bytes."""
    reads: list[tuple[str, int, int]] = []
    usual = PartlyHashed.read

    def reading(file: PartlyHashed, piece: memoryview) -> None:
        reads.append((file.path.name, file.place, len(piece)))
        usual(file, piece)

    monkeypatch.setattr(PartlyHashed, "read", reading)
    return reads


def test_what_the_block_reads_is_not_read_again(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reads = memoryview(content_of(checkpoint)), read_by_itself(monkeypatch)
    seen = [(TENSORS, start, content[start : start + 900]) for start in range(0, len(content) - 1000, 1000)]
    verify(checkpoint, *seen)
    own = [count for name, _, count in reads if name == TENSORS]
    assert sum(own) < 0.2 * len(content)


@pytest.mark.parametrize("gap", [0, 64, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_reading_comes_to_the_same(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, seed: int, gap: int
) -> None:
    """Pieces that overlap, that are read twice, backwards, far apart."""
    monkeypatch.setattr(verified_beside_module, "GAP_BYTES", gap)
    monkeypatch.setattr(verified_beside_module, "PIECE_BYTES", max(gap, 5000))
    draw = random.Random(seed)

    def seen(names: list[str]) -> Iterator[tuple[str, int, memoryview]]:
        for _ in range(200):
            name = draw.choice(names)
            content = memoryview(content_of(checkpoint, name))
            start = draw.randrange(len(content))
            yield name, start, content[start : start + draw.choice([0, 1, 100, 5000, 50_000])]

    names = [path.name for path in checkpoint.glob("*.distcp")]
    verify(checkpoint, *seen(names))
    flip_a_bit(checkpoint / TENSORS)
    with pytest.raises(CheckpointError, match="sha256 is"):
        verify(checkpoint, *seen(names))


def test_what_was_seen_counts_not_what_is_there(checkpoint: Path) -> None:
    """Bytes that the block has got are looked at, even if the file has others by now."""
    wrong = bytearray(content_of(checkpoint))
    wrong[100] ^= 1
    with pytest.raises(CheckpointError, match="sha256 is"):
        verify(checkpoint, (TENSORS, 0, memoryview(wrong)[:1000]))


def test_after_an_error_the_block_is_not_kept_waiting(checkpoint: Path) -> None:
    content = memoryview(bytes(100))
    seen = [(TENSORS, start, content) for start in range(0, 100_000, 1000)]
    with pytest.raises(CheckpointError, match="cannot be read"):
        verify(checkpoint, *seen, ("of no checkpoint", 0, content), change=(checkpoint / TENSORS).unlink)


def test_what_is_seen_after_the_end_is_not_waited_for(checkpoint: Path) -> None:
    content = memoryview(content_of(checkpoint))
    with verified_beside(checkpoint) as verification:
        verification.wait()
        for _ in range(5):
            verification.saw(TENSORS, 0, content)


def test_a_file_that_is_cut_meanwhile_is_named(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{checkpoint / TENSORS}: cannot be read"):
        verify(checkpoint, change=lambda: os.truncate(checkpoint / TENSORS, 1000))
