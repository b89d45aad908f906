"""Two torchrun agents as two nodes: the same command on each, meeting at one address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training import SMALL, rows


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_node(number: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)),
        *("--master-addr", "127.0.0.1", "--master-port", str(port)),
        *("-m", "qwen_megatron", "pretrain", *arguments),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_nodes_train_one_model(byte_corpus: Path, tmp_path: Path) -> None:
    arguments = [
        *SMALL,
        f"data.blend=[{byte_corpus}]",
        f"checkpoint.directory={tmp_path / 'run'}",
        "parallel.pipeline_model_parallel_size=2",
        "training.exit_iter=2",
    ]
    port = free_port()
    nodes = [start_node(number, port, arguments) for number in range(2)]
    try:
        outputs = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    # Rank 0 stands on the first node and alone prints the steps.
    assert "step  2/20 | loss" in outputs[0]
    assert "loss" not in outputs[1]
    trained = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2]
    assert trained[0]["loss"] == pytest.approx(5.58, abs=0.1)
    assert (tmp_path / "run" / "iter_0000002" / "manifest.json").exists()
