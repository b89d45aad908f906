"""What a run writes into its folder besides checkpoints: odd rows are left out, a full disk names the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from qwen_megatron.errors import PlatformError
from qwen_megatron.jobs.failure import restart_helps
from qwen_megatron.train.hooks.metrics import MetricsHook, drop_rows_after
from qwen_megatron.train.hooks.preemption import write_completion
from qwen_megatron.train.hooks.wandb import run_id
from tests.support.disks import full_disk
from tests.support.ranks import RankPool
from tests.support.training import SMALL, pretrain_job, pretrain_on_ranks, rows
from tests.train.test_hooks import make_run, record

ODD_ROWS = {
    "undecodable": b"\xff\xfe\n",
    "step a text": b'{"step": "5"}\n',
    "step an object": b'{"step": {}}\n',
    "step true": b'{"step": true}\n',
    "step beyond a float": b'{"step": 1e400}\n',
    "step of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}\n",
    "not a number": b'{"step": NaN}\n',
    "nested": b'{"step": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "null": b"null\n",
    "zeros": b"\0\0\0\0\n",
    "without a step": b"{}\n",
}


@pytest.mark.parametrize("odd", ODD_ROWS.values(), ids=ODD_ROWS)
def test_an_odd_row_is_left_out_with_a_warning(odd: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + odd + b'{"step": 2, "loss": 1.5}\n{"step": 9}\n')
    drop_rows_after(path, 5)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "loss": 1.5}\n'
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert f"{path}: 1 lines are no rows" in caplog.text


def test_a_full_disk_names_the_metrics(tmp_path: Path) -> None:
    run, hook = make_run(tmp_path), MetricsHook()
    hook.on_start(run)
    hook.on_step(run, record(1))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with full_disk(size + 10), pytest.raises(PlatformError) as caught:
        hook.on_step(run, record(2))
    # Nothing is left that closing would try to write again.
    hook.close()
    assert f"{tmp_path / 'metrics.jsonl'}: cannot be written (File too large)" in str(caught.value)
    assert restart_helps(caught.value, "other")
    drop_rows_after(tmp_path / "metrics.jsonl", 9)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1]


def test_a_full_disk_names_what_a_start_and_an_end_write(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' * 9)
    with full_disk(10), pytest.raises(PlatformError, match=r"metrics\.jsonl: cannot be written"):
        MetricsHook().on_start(make_run(tmp_path, iteration=3))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n' * 9
    with full_disk(10), pytest.raises(PlatformError, match=r"completion\.json: cannot be written"):
        write_completion(tmp_path, "finished", 3)


def pretrain_on_a_full_disk(overrides: list[str], limit: int) -> str:
    with full_disk(limit), pytest.raises(PlatformError) as caught:
        pretrain_job(overrides)
    return str(caught.value)


def test_a_run_resumes_after_a_full_disk(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    common = ("training.exit_iter=6", "checkpoint.save_interval=2")
    straight = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "straight", *common)
    pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "run", "training.exit_iter=2", *common[1:])
    # So long that nothing else which is written before step 4 reaches the limit.
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 2, "x": "' + b"x" * 2_000_000 + b'"}\n')
    settings = [*SMALL, f"data.blend=[{byte_corpus}]", f"checkpoint.directory={tmp_path / 'run'}", *common]
    overrides = [*settings, "checkpoint.save_interval=9"]
    (error,) = ranks.run(1, pretrain_on_a_full_disk, overrides=overrides, limit=2_003_000)
    assert "metrics.jsonl: cannot be written (File too large)" in error
    steps = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "run", *common)
    assert [steps[step]["loss_hex"] for step in range(1, 7)] == [straight[step]["loss_hex"] for step in range(1, 7)]
    assert sorted({row["step"] for row in rows(tmp_path / "run")}) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"id": "../x"}', b'{"id": 5}', b"\xff"])
def test_an_odd_wandb_file_begins_a_new_run(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "wandb.json"
    path.write_bytes(content)
    first = run_id(path)
    assert len(first) == 16
    assert run_id(path) == first
