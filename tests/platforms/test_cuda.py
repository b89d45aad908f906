"""What the CUDA platform does before anything touches a GPU; no GPU is needed to see it."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from qwen_megatron.errors import PlatformError
from qwen_megatron.parallel.groups import start_process_group
from qwen_megatron.parallel.rendezvous import Member
from qwen_megatron.platforms import get_platform
from qwen_megatron.platforms.environment import DETERMINISTIC, FIXED_BUFFERS, ONE_QUEUE, cuda_variables, set_variables
from qwen_megatron.platforms.rows import add_rows
from qwen_megatron.platforms.shims.cuda import cuda_shims
from qwen_megatron.platforms.shims.fused_adam import FusedAdam


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set, before and after."""
    for variable in (ONE_QUEUE, FIXED_BUFFERS, *DETERMINISTIC):
        # Set first: what the test sets is then taken back.
        monkeypatch.setenv(variable.name, "")
        monkeypatch.delenv(variable.name)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is a GPU which nothing has used yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_only_what_is_asked_for_is_set(clean: None) -> None:
    assert cuda_variables(tensor_parallel=False, deterministic=False) == []
    lines = set_variables(cuda_variables(tensor_parallel=True, deterministic=False))
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert len(lines) == 1
    assert lines[0].startswith("CUDA_DEVICE_MAX_CONNECTIONS=1: ")
    assert "NCCL_ALGO" not in os.environ


def test_graphs_hold_buffers_where_they_are(clean: None, pretended: None) -> None:
    assert get_platform("cuda").configure() == []
    (line,) = get_platform("cuda").configure(cuda_graphs=True)
    assert line.startswith("NCCL_GRAPH_REGISTER=0: ")
    assert os.environ["NCCL_GRAPH_REGISTER"] == "0"
    assert get_platform("cpu").configure(cuda_graphs=True) == []


def test_what_the_user_set_is_kept_or_refused(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    wanted = cuda_variables(tensor_parallel=True, deterministic=True)
    lines = set_variables(wanted)
    assert "CUDA_DEVICE_MAX_CONNECTIONS=8 was set and is kept" in lines[0]
    assert os.environ["NCCL_ALGO"] == "Tree"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with pytest.raises(PlatformError, match="NVTE_ALLOW_NONDETERMINISTIC_ALGO=1 is set, 0 is needed") as refused:
        set_variables(wanted)
    assert "training.deterministic=false" in str(refused.value)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_variables_come_too_late_once_cuda_runs(clean: None, pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = get_platform("cuda")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert platform.configure(tensor_parallel=False, deterministic=False) == []
    with pytest.raises(PlatformError, match="CUDA runs already"):
        platform.configure(tensor_parallel=True, deterministic=False)


def test_deterministic_asks_torch_too(clean: None, pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch._C, "_set_deterministic_fill_uninitialized_memory", lambda value: None)
    get_platform("cuda").configure(tensor_parallel=False, deterministic=False)
    assert asked == []
    lines = get_platform("cuda").configure(tensor_parallel=False, deterministic=True)
    assert asked == [True]
    assert {line.partition("=")[0] for line in lines} >= {variable.name for variable in DETERMINISTIC}
    # The CPU is so by itself.
    assert get_platform("cpu").configure(tensor_parallel=True, deterministic=True) == []


def test_nccl_is_told_its_device(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **options: started.append({"to": backend} | options)
    )
    for name, backend in (("cuda", "auto"), ("cuda", "gloo_for_testing"), ("cpu", "auto")):
        platform = get_platform(name, backend)
        member = Member(rank=0, world_size=1, device=platform.device(0), store=dist.HashStore())
        start_process_group(platform, 1.0, member)
    assert [options["to"] for options in started] == ["nccl", "gloo_for_testing", "gloo"]
    assert [options.get("device_id") for options in started] == [torch.device("cuda", 0), None, None]


def test_ranks_share_a_gpu_only_for_testing(pretended: None) -> None:
    assert get_platform("cuda", "gloo_for_testing").device(3) == torch.device("cuda", 0)
    with pytest.raises(PlatformError, match="local rank 3 has no GPU: this machine has 1"):
        get_platform("cuda").device(3)
    with pytest.raises(PlatformError, match="gloo_for_testing to run several ranks on one GPU"):
        get_platform("cuda", "gloo")
    with pytest.raises(PlatformError, match="NCCL needs GPUs"):
        get_platform("cpu", "nccl")


def test_adam_is_replaced_only_where_nothing_better_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = importlib.import_module("megatron.core.optimizer")
    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", False)
    assert cuda_shims() == []
    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", True)
    shims = cuda_shims()
    assert any(getattr(shim, "replacement", None) is FusedAdam for shim in shims)
    for shim in shims:
        shim.owner()
        assert "state does not load" in shim.reason
        assert shim.until.startswith("Megatron-Core's distributed optimizer loads")


def test_rows_add_up_the_same_in_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(7, (200,), generator=generator)
    rows = torch.randn(200, 5, generator=generator)
    ours, sorted_first, exact = torch.ones(9, 5), torch.ones(9, 5), torch.ones(9, 5, dtype=torch.float64)
    add_rows(ours, numbers, rows)
    # What runs on other devices, here on the CPU's.
    sorted_first.index_put_((numbers,), rows, accumulate=True)
    exact.index_add_(0, numbers, rows.double())
    for sums in (ours, sorted_first):
        torch.testing.assert_close(sums.double(), exact, rtol=0, atol=1e-5)
