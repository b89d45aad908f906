"""`launch` checks first, then starts what it says; tests/jobs/test_loopback.py starts real processes with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qwen_megatron.cli.main import main
from qwen_megatron.jobs.kinds.table import JOBS, job_words, split_job

SLURM = [
    "launch",
    "recipe:qwen-14b",
    "data.blend={/shared/my web: 1}",
    "checkpoint.directory=/shared/14b",
    "--nodes",
    "4",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe:demo", "data.blend=[nowhere]"], "data.blend=nowhere: "),
        (["recipe:demo", "--processes", "0"], "--processes 0: must be at least 1"),
        (["recipe:demo", "--processes", "3"], "parallel.world_size=3: must be a multiple"),
        (["recipe:demo", "--max-restarts", "-1"], "--max-restarts -1: must be at least 0"),
        (["recipe:demo", "--submit"], "--submit: is for several machines; give --nodes"),
        (
            ["recipe:qwen-14b", "--nodes", "4", "--processes", "7"],
            "training.global_batch_size=2048: must be a multiple",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = f"checkpoint.directory={tmp_path / 'run'}"
    assert main(["launch", *arguments, directory]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_process_is_trained_in_this_one(
    monkeypatch: pytest.MonkeyPatch, byte_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []
    monkeypatch.setattr("qwen_megatron.cli.train.run", lambda args: started.append((args.job, args.settings)) or 0)
    settings = ["model.preset=tiny", "model.vocab_size=257", "training.train_iters=4", f"data.blend=[{byte_corpus}]"]
    settings += [f"checkpoint.directory={tmp_path / 'run'}", "training.seq_length=64", "training.global_batch_size=2"]
    assert main(["launch", *settings, "data.eval_samples=0", "--processes", "1"]) == 0, capsys.readouterr().err
    assert started == [("pretrain", [*settings, "data.eval_samples=0", "parallel.world_size=1"])]


def test_a_job_is_named_before_its_recipe() -> None:
    assert split_job(["recipe:demo", "sft"]) == (JOBS["pretrain"], ["recipe:demo", "sft"])
    for name, kind in JOBS.items():
        assert split_job([name, "recipe:demo"]) == (kind, ["recipe:demo"])
    assert [word for kind in JOBS.values() for word in job_words(kind)] == ["sft", "reward", "ppo"]


def test_several_machines_are_a_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is run to its first command with a stand-in, which shows the settings and that bash reads the script."""
    assert main(SLURM) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/usr/bin/env bash\n#SBATCH ")
    assert {"#SBATCH --nodes=4", "#SBATCH --gpus-per-node=8", "#SBATCH --requeue"} <= set(script.splitlines())
    for name, body in {"scontrol": "echo node1", "qwen-megatron": 'printf "%s\\n" "$@"; exit 2'}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    # The environment of the script comes first in its PATH.
    script = script.replace('"$PATH"', f'"{tmp_path}:$PATH"').replace("PATH=", f"PATH={tmp_path}:", 1)
    variables = {"SLURM_NNODES": "4", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_GPUS_ON_NODE": "8"}
    done = subprocess.run(
        ["bash"], input=script, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    given = [*SLURM[1:4], "parallel.world_size=32"]
    assert done.stdout.splitlines() == ["pretrain", *given, "--dry-run"]
    assert main(["launch", "reward", *SLURM[1:]]) == 0
    assert f"set -- reward {SLURM[1]} " in capsys.readouterr().out


def test_a_script_is_submitted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*SLURM, "--submit"]) == 2
    assert "--submit: there is no sbatch here" in capfd.readouterr().err
    (tmp_path / "sbatch").write_text("#!/bin/sh\n/bin/cat\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert main([*SLURM, "--submit"]) == 0
    assert "#SBATCH --nodes=4" in capfd.readouterr().out
