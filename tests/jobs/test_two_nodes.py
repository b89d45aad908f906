"""Two torchrun agents as two nodes: the same command on each, meeting at one address."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.launch import ForkedAgent, product
from tests.support.ranks import RankPool
from tests.support.training import SMALL, pretrain_on_ranks, rows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def options(number: int, port: int) -> list[str]:
    """torchrun's on each of two nodes with one rank."""
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number))
    return [*place, "--master-addr", "127.0.0.1", "--master-port", str(port)]


def start_node(number: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *options(number, port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*command, "-m", "qwen_megatron", "pretrain", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_nodes_train_one_model(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """On the first node the command torchrun and a command as its rank; the second one is forked."""
    arguments = [
        *SMALL,
        f"data.blend=[{byte_corpus}]",
        f"checkpoint.directory={tmp_path / 'run'}",
        "parallel.pipeline_model_parallel_size=2",
        "training.exit_iter=2",
    ]
    port = free_port()
    first = start_node(0, port, arguments)
    second = ForkedAgent(
        options(1, port),
        product,
        ["pretrain", *arguments],
        log=tmp_path / "log",
        environment=os.environ | {"OMP_NUM_THREADS": "1"},
        directory=tmp_path,
    )
    try:
        outputs = [first.communicate(timeout=120)[0], second.output(timeout=60)]
    finally:
        first.kill()
        second.kill()
    assert [first.returncode, second.returncode] == [0, 0], "\n".join(outputs)
    # Rank 0 stands on the first node and alone prints the steps.
    assert "step 2/2  loss" in outputs[0]
    assert "loss" not in outputs[1]
    trained = {row["step"]: row for row in rows(tmp_path / "run") if "loss" in row}
    alone = pretrain_on_ranks(ranks, 1, byte_corpus, tmp_path / "alone", "training.exit_iter=2")
    assert list(trained) == list(alone) == [1, 2]
    for step, row in alone.items():
        assert trained[step]["consumed_samples"] == row["consumed_samples"]
        for name in ("loss", "grad_norm"):
            assert trained[step][name] == pytest.approx(row[name], rel=1e-5), f"{name} of step {step}"
    assert (tmp_path / "run" / "iter_0000002" / "manifest.json").exists()


def impatient(arguments: Sequence[str]) -> int:
    from qwen_megatron.checkpoint import choice

    choice.PATIENCE_SECONDS = 2.0
    return product(arguments)


@pytest.mark.parametrize(
    ("patience", "stale"),
    [
        ("short", 1),
        pytest.param("real", 1, marks=pytest.mark.faults),
        pytest.param("real", 0, marks=pytest.mark.faults),
    ],
)
def test_a_node_that_sees_an_older_state_of_the_folder_ends_the_job(
    ranks: RankPool, byte_corpus: Path, tmp_path: Path, patience: str, stale: int
) -> None:
    """Each node has a working directory of its own, and the run's folder is named by a relative path."""
    settings = ("parallel.pipeline_model_parallel_size=2", "checkpoint.save_interval=2")
    pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "node0" / "run", *settings, "training.exit_iter=4")
    shutil.copytree(tmp_path / "node0", tmp_path / "node1")
    shutil.rmtree(tmp_path / f"node{stale}" / "run" / "iter_0000004")
    before = rows(tmp_path / "node0" / "run")
    arguments = [*SMALL, f"data.blend=[{byte_corpus}]", "checkpoint.directory=run", *settings, "training.exit_iter=8"]
    port, started = free_port(), time.monotonic()
    nodes = [
        ForkedAgent(
            options(number, port),
            impatient if patience == "short" else product,
            ["pretrain", *arguments],
            log=tmp_path / f"log{number}",
            environment=os.environ,
            directory=tmp_path / f"node{number}",
        )
        for number in range(2)
    ]
    outputs = [node.output(timeout=120) for node in nodes]
    assert time.monotonic() - started < 120
    assert [node.returncode for node in nodes] == [1, 1]
    said = [line for line in outputs[0].splitlines() if "UnseenCheckpoint: run/iter_0000004, which rank" in line]
    assert f"by rank {stale} (" in said[0], outputs[0]
    assert "step  5" not in outputs[0]
    assert rows(tmp_path / "node0" / "run") == before
    assert not list(tmp_path.glob("node*/run/iter_0000008"))
