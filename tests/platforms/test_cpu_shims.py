"""The CPU platform's shims: what they reach, and what they leave alone."""

from __future__ import annotations

import dataclasses
import inspect
import types
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed

from qwen_megatron.errors import PlatformError
from qwen_megatron.platforms import get_platform
from qwen_megatron.platforms.cpu import CpuPlatform
from qwen_megatron.platforms.cuda import CudaPlatform
from qwen_megatron.platforms.shims.checkpoint import checkpoint_shim
from qwen_megatron.platforms.shims.cpu import apply_cpu_shims, cpu_shims
from qwen_megatron.platforms.shims.gloo import gloo_shim
from qwen_megatron.platforms.shims.later import later_lines
from qwen_megatron.platforms.shims.registry import Constants, TorchNamespace, applied

SHIMS = Path(__file__).parents[2] / "qwen_megatron/platforms/shims"

# Read before any shim is applied in this process by the tests below; taken from torch's own modules, not from names
# that a shim could have replaced.
ORIGINALS = {
    "torch.cuda.current_device": torch.cuda.current_device,
    "torch.cuda.synchronize": torch.cuda.synchronize,
    "torch.cuda.Stream": torch.cuda.Stream,
    "torch.cuda.get_rng_state": torch.cuda.get_rng_state,
    "torch.distributed.barrier": torch.distributed.barrier,
    "torch.zeros": torch.zeros,
    "torch.empty": torch.empty,
}


def look_up(name: str) -> object:
    value: object = torch
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


@pytest.fixture(scope="module", autouse=True)
def lines() -> list[str]:
    return apply_cpu_shims()


def test_every_shim_says_why_and_until_when() -> None:
    shims = cpu_shims()
    assert len(shims) > 20
    for shim in shims:
        assert len(shim.reason) > 10, shim.target
        assert len(shim.until) > 10, shim.target
        assert (shim.library, shim.version) == ("megatron-core", "0.16.1"), shim.target
        assert shim.target.startswith("megatron.core"), "only Megatron-Core is redirected"


def test_every_target_exists() -> None:
    for shim in cpu_shims():
        holder, name = shim.owner()
        assert getattr(holder, name) is not None or name == "USING_PYTORCH_OPTIMIZER"


def test_no_target_is_shimmed_twice_over() -> None:
    kinds = [(type(shim), shim.target) for shim in cpu_shims() if not isinstance(shim, Constants)]
    assert len(kinds) == len(set(kinds))


def test_shims_are_logged_and_applied_once(lines: list[str]) -> None:
    assert len(lines) == len(cpu_shims())
    for shim, line in zip(cpu_shims(), lines, strict=True):
        assert line == f"{shim.target}: {shim.reason} (until {shim.until})"
    # Applied again, every rewritten constant would be missing.
    assert apply_cpu_shims() == lines


def test_every_shim_of_a_run_is_listed(lines: list[str]) -> None:
    """Also those that are applied when a checkpoint is loaded and while groups are created; and no other exists."""
    listed = get_platform("cpu").prepare()
    assert listed[: len(lines)] == lines
    targets = [line.partition(": ")[0] for line in listed[len(lines) :]]
    assert targets == [
        "megatron.core.dist_checkpointing.strategies.torch:_get_filesystem_reader",
        "torch.distributed.distributed_c10d:ProcessGroupGloo",
    ]
    assert [line.partition(":")[0] for line in later_lines("nccl")] == [targets[0].partition(":")[0]]
    written = "".join(path.read_text() for path in SHIMS.glob("*.py"))
    assert all(target in written for target in targets)
    # Every kind of shim is made in these modules only: what makes one is in one of the lists, but for those of a dry
    # run of a plan, in which nothing runs (`alone`).
    makers = {path.stem for path in SHIMS.glob("*.py") if "target=" in path.read_text()}
    assert makers == {"alone", "checkpoint", "cpu", "cuda", "fused_adam", "gloo"}


def test_later_shims_have_targets() -> None:
    for shim in (checkpoint_shim(print), gloo_shim(print)):
        holder, name = shim.owner()
        assert callable(getattr(holder, name))


def test_torch_has_its_own_gloo_groups_again() -> None:
    from torch.distributed import distributed_c10d

    original = distributed_c10d.ProcessGroupGloo

    def fail() -> None:
        with applied(gloo_shim(print)):
            raise KeyError(distributed_c10d.ProcessGroupGloo)

    with pytest.raises(KeyError, match="print"):
        fail()
    assert distributed_c10d.ProcessGroupGloo is original


@pytest.mark.parametrize("name", ORIGINALS)
def test_global_torch_is_untouched(name: str) -> None:
    value = look_up(name)
    assert value is ORIGINALS[name]
    assert not inspect.getmodule(value).__name__.startswith("qwen_megatron")  # type: ignore[union-attr]


def test_global_torch_still_asks_for_cuda() -> None:
    if torch.cuda.is_available():
        assert isinstance(torch.cuda.current_device(), int)
    else:
        with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|nvidia"):
            torch.cuda.current_device()


def test_megatron_sees_the_cpu() -> None:
    for shim in cpu_shims():
        if isinstance(shim, TorchNamespace):
            holder, name = shim.owner()
            namespace = getattr(holder, name)
            assert namespace is not torch, shim.target
            assert namespace.cuda.current_device() == torch.device("cpu"), shim.target
            namespace.cuda.synchronize()
            # Everything else is torch itself: tensors made through the copy are torch's.
            assert namespace.Tensor is torch.Tensor
            assert namespace.nn is torch.nn
            assert type(namespace.zeros(1)) is torch.Tensor


def test_no_rewritten_function_names_cuda() -> None:
    """What the shims were written for is gone from the code that runs."""
    for shim in cpu_shims():
        if not isinstance(shim, Constants):
            continue
        holder, name = shim.owner()
        static = holder.__dict__[name]
        function = getattr(static, "__func__", static)
        strings, names = code_words(getattr(function, "__wrapped__", function).__code__)
        assert not strings & set(shim.literals), shim.target
        assert not names & set(shim.names), shim.target


def code_words(code: types.CodeType) -> tuple[set[str], set[str]]:
    """String constants and names of a code object and those nested in it."""
    strings: set[str] = set()
    names = set(code.co_names)
    pending = list(code.co_consts)
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            strings.add(value)
        elif isinstance(value, tuple | frozenset):
            pending.extend(value)
        elif isinstance(value, types.CodeType):
            names |= set(value.co_names)
            pending.extend(value.co_consts)
    return strings, names


def test_streams_and_events_do_nothing() -> None:
    import megatron.core.utils

    cuda = megatron.core.utils.torch.cuda
    stream, event = cuda.current_stream(), cuda.Event(enable_timing=True)
    event.record(stream)
    event.synchronize()
    stream.wait_stream(cuda.default_stream())
    with cuda.stream(stream):
        assert torch.ones(2).sum() == 2


def test_generator_state_is_the_cpu_generators() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    torch.manual_seed(1)
    state = megatron_random._get_cuda_rng_state()
    first = torch.rand(4)
    megatron_random._set_cuda_rng_state(state)
    assert torch.equal(torch.rand(4), first)


def test_platforms_are_chosen_by_name_or_by_what_is_there() -> None:
    assert isinstance(get_platform("cpu"), CpuPlatform)
    assert isinstance(get_platform("cuda"), CudaPlatform)
    assert get_platform("auto").name == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    platform = get_platform("cuda")
    with pytest.raises(PlatformError, match=r"parallel\.platform=cpu"):
        platform.prepare()
    with pytest.raises(PlatformError, match="local rank 0 has no GPU: this machine has 0"):
        platform.device(0)


def test_cpu_platform_measures_memory_in_bytes() -> None:
    platform = get_platform("cpu")
    block = torch.ones(64 << 20, dtype=torch.uint8)
    resident = psutil.Process().memory_info().rss
    assert resident > block.numel()
    # The peak is counted in KiB and may lag by a page batch.
    assert 0.98 * resident <= platform.peak_memory_bytes() < psutil.virtual_memory().total
    del block
    assert platform.peak_memory_bytes() >= 0.98 * resident


def test_cpu_device_is_the_same_for_every_rank() -> None:
    assert get_platform("cpu").device(3) == torch.device("cpu")


def test_shims_are_immutable_records() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        cpu_shims()[0].reason = "another"  # type: ignore[misc]
