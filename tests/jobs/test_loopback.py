"""A launch on one machine: the same as torchrun's, but nothing listens beyond the machine."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel import loopback
from qwen_megatron.parallel.rendezvous import loopback_store, open_store
from tests.faults.job import LONG, Job
from tests.support.ranks import RankPool
from tests.support.training import pretrain_on_ranks

ROOT = Path(__file__).parents[2]


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses at which any of the processes takes connections."""
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for other processes' sockets")
def test_a_launch_listens_on_the_machine_alone_and_restarts(byte_corpus: Path, tmp_path: Path) -> None:
    settings = ("training.exit_iter=12", "checkpoint.save_interval=3")
    with Job(tmp_path / "run", byte_corpus, 2, *settings, max_restarts=1, on_loopback=True) as job:
        job.wait_for_step(4)
        assert listening(job.processes()) == {"127.0.0.1"}
        job.send(1, signal.SIGKILL)
        assert job.wait() == 0, job.output()
    assert job.output().count("parameters on cpu") == 2
    assert list(job.rows()) == list(range(1, 13))
    assert "going on from" in job.output()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for other processes' sockets")
def test_the_command_is_such_a_launch_and_a_signal_saves(ranks: RankPool, byte_corpus: Path, tmp_path: Path) -> None:
    """`qwen-megatron launch`, and commands as its ranks."""
    directory, pp2 = tmp_path / "run", "parallel.pipeline_model_parallel_size=2"
    with Job(directory, byte_corpus, 2, pp2, command=True) as job:
        job.wait_for_step(3)
        assert listening(job.processes()) == {"127.0.0.1"}
        job.agent.send_signal(signal.SIGTERM)
        assert job.wait(60) == 1
    output = job.output()
    completion = json.loads((directory / "completion.json").read_text())
    assert completion["reason"] == "SIGTERM", output
    step = completion["step"]
    assert list(job.rows()) == list(range(1, step + 1))
    assert (directory / f"iter_{step:07d}" / "manifest.json").exists()
    assert f"left after step {step}: SIGTERM" in output
    # Going on is bitwise what an undisturbed run does.
    settings = (pp2, f"training.exit_iter={step + 2}")
    halves = pretrain_on_ranks(ranks, 2, byte_corpus, directory, *settings, base=LONG)
    whole = pretrain_on_ranks(ranks, 2, byte_corpus, tmp_path / "whole", *settings, base=LONG)
    assert {n: row["loss_hex"] for n, row in halves.items()} == {n: row["loss_hex"] for n, row in whole.items()}


def test_our_own_launches_are_such() -> None:
    """No file of ours starts torchrun on one machine; the words for users in help and documents are another thing."""
    for path in (
        "qwen_megatron/cli/launch.py",
        "qwen_megatron/jobs/parity.py",
        "examples/gpu_smoke.sh",
        "benchmarks/bench_save.py",
    ):
        text = (ROOT / path).read_text()
        assert re.search(r"qwen_megatron\.parallel(\.| import )loopback", text), path
        assert "torch.distributed.run" not in text, path
        assert '"torchrun"' not in text, path


def test_several_nodes_are_refused() -> None:
    with pytest.raises(PlatformError, match="--nnodes 2: this launcher is for one machine"):
        loopback.create_handler(loopback.RendezvousParameters("loopback", "127.0.0.1", "run", min_nodes=1, max_nodes=2))


def test_an_interface_that_is_named_stays() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "eth7"}
    loopback.stay_on_loopback(environment)
    assert environment["GLOO_SOCKET_IFNAME"] == "eth7"
    assert environment["NCCL_SOCKET_IFNAME"] in loopback.INTERFACES


def test_the_store_is_a_store_and_is_not_reached_from_outside() -> None:
    store = loopback_store()
    client = dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
    client.set("key", "value")
    assert store.get("key") == b"value"
    assert "127.0.0.1" in listening([psutil.Process()])
    with pytest.raises(OSError, match="in use"):
        loopback_store(store.port)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_rank_0_that_has_to_serve_the_store_serves_this_machine_only(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another launcher than torchrun leaves it to rank 0; on one machine, its address is a loopback one."""
    probe = loopback_store()
    port = probe.port
    del probe
    before = listening([psutil.Process()])
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store = open_store(0, 10.0)
    store.set("key", "value")
    assert listening([psutil.Process()]) - before <= {"127.0.0.1"}
