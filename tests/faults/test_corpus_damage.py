"""A corpus is damaged in place under a running job: the run stops, says which file, and keeps nothing it learned."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora import write_byte_corpus
from tests.support.ranks import RankFailed, RankPool
from tests.support.training import pretrain_job, pretrain_on_ranks, rows


def damaging_job(overrides: list[str], path: str, step: int, keep_time: bool) -> None:
    """Trains, and zeroes in the middle of a step what the first sample was read from: its block is verified."""
    import os

    import torch.distributed as dist

    from qwen_megatron.data.pretraining.dataset import BlendedDataset
    from qwen_megatron.train import step as step_module

    read = BlendedDataset.tokens
    first: list[int] = []

    def tokens(self: BlendedDataset, sample: Any) -> Any:
        first.append(self.train_id(0).sample * self.seq_length * 4)
        return read(self, sample)

    BlendedDataset.tokens = tokens  # type: ignore[method-assign]

    original: Callable[..., Any] = step_module.measure_gradient
    calls = 0

    def measure(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step and dist.get_rank() == 0:
            before = os.stat(path)
            with open(path, "r+b") as stream:
                stream.seek(first[0])
                stream.write(bytes(64))
            if keep_time:
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return original(*args)

    step_module.measure_gradient = measure
    try:
        pretrain_job(overrides)
    finally:
        step_module.measure_gradient = original
        BlendedDataset.tokens = read  # type: ignore[method-assign]


@pytest.fixture
def corpus(byte_corpus: Path, tmp_path: Path) -> Path:
    """One that the test may damage."""
    for suffix in ("bin", "idx", "crc", "json"):
        shutil.copy(f"{byte_corpus}.{suffix}", tmp_path / f"corpus.{suffix}")
    return tmp_path / "corpus"


def train_damaged(ranks: RankPool, corpus: Path, directory: Path, *settings: str, keep_time: bool = False) -> str:
    from tests.support.training import SMALL

    overrides = [*SMALL, f"data.blend=[{corpus}]", f"checkpoint.directory={directory}", *settings]
    with pytest.raises(RankFailed) as failed:
        ranks.run(2, damaging_job, overrides=overrides, path=f"{corpus}.bin", step=5, keep_time=keep_time)
    return str(failed.value)


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        (("training.eval_interval=7", "checkpoint.save_interval=3"), 5),
        (("training.eval_interval=7", "checkpoint.save_interval=100"), 6),
        (("data.eval_samples=0", "checkpoint.save_interval=100", "training.train_iters=9"), 8),
    ],
    ids=["at a save", "at an evaluation", "at the end"],
)
def test_damage_after_the_first_read_stops_the_run(
    settings: tuple[str, ...], last: int, ranks: RankPool, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    told = train_damaged(ranks, corpus, run, *settings)
    assert "corpus.bin: was changed while it was open" in told
    # Checked before a row of the evaluation and before a file of the checkpoint.
    kept = sorted(path.name for path in run.glob("iter_*"))
    assert kept == (["iter_0000003"] if "checkpoint.save_interval=3" in settings else [])
    steps = [row["step"] for row in rows(run) if "loss" in row]
    assert steps[-1] in (last, last + 1)
    assert not [row for row in rows(run) if "eval_loss" in row and row["step"] >= 5]
    failure = json.loads((run / "failure.json").read_text())
    assert (failure["error"], failure["restart_helps"]) == ("DataError", False)
    assert "corpus.bin" in failure["message"]


def test_damage_that_hides_its_time_is_found_in_the_next_epoch(ranks: RankPool, tmp_path: Path) -> None:
    corpus = write_byte_corpus(tmp_path / "corpus", num_documents=10)
    # No look at the files before the end: all that is left is reading.
    settings = ("data.eval_samples=0", "checkpoint.save_interval=10000", "training.train_iters=40")
    batch = ("training.micro_batch_size=8", "training.global_batch_size=32")
    told = train_damaged(ranks, corpus, tmp_path / "run", *settings, *batch, keep_time=True)
    assert re.search(r"corpus\.bin: block \d+ .* the file is damaged", told), told
    samples = (corpus.with_name("corpus.bin").stat().st_size // 4 - 1) // 64
    consumed = rows(tmp_path / "run")[-1]["consumed_samples"]
    # In the second epoch, when the block is read for the first time.
    assert samples - 32 <= consumed < 1.5 * samples


def test_after_the_corpus_is_restored_the_run_goes_on_bitwise(
    ranks: RankPool, corpus: Path, byte_corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_damaged(ranks, corpus, run, "checkpoint.save_interval=3", "training.exit_iter=12")
    shutil.copy(f"{byte_corpus}.bin", f"{corpus}.bin")
    (run / "failure.json").unlink()
    settings = ("checkpoint.save_interval=3", "training.exit_iter=12")
    halves = pretrain_on_ranks(ranks, 2, corpus, run, *settings)
    whole = pretrain_on_ranks(ranks, 2, corpus, tmp_path / "whole", *settings)
    assert {n: row["loss_hex"] for n, row in halves.items()} == {n: row["loss_hex"] for n, row in whole.items()}
    assert list(halves) == list(range(1, 13))
