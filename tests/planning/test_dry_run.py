"""The program's ranks on tensors without content, against the arithmetic: memory, operations, bytes sent."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist

from qwen_megatron.config.arithmetic.memory import stage_memory
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.planning.dry_run import DryRun, dry_run
from qwen_megatron.planning.place import place_of
from qwen_megatron.planning.traffic import step_traffic
from qwen_megatron.planning.work import step_flops
from qwen_megatron.platforms.vocabulary import KEPT

SMALL = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    "model.vocab_size=301",
    "training.seq_length=256",
    "training.global_batch_size=8",
)
TP2, SP = "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"
PP2, CP2 = "parallel.pipeline_model_parallel_size=2", "parallel.context_parallel_size=2"
# With a layer for each stage or piece of one.
PP4 = ("parallel.pipeline_model_parallel_size=4", "model.num_layers=4")
VPP2 = ("parallel.virtual_pipeline_model_parallel_size=2", "model.num_layers=4")
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
FULL, SELECTIVE = "parallel.recompute_granularity=full", "parallel.recompute_granularity=selective"
TIED, FP32 = "model.tie_word_embeddings=true", "training.precision=fp32"
GROUPED = ("model.num_query_groups=2", "model.qk_layernorm=true", "model.add_qkv_bias=false")

# Processes, rank, layout.
LAYOUTS = {
    "one": (1, 0, ("training.global_batch_size=2", "training.micro_batch_size=2")),
    "fp32": (2, 1, (FP32, *OVERLAP, "training.micro_batch_size=2")),
    "tp2-padded": (4, 1, (TP2, "training.global_batch_size=4")),
    "tp2-sp-full": (2, 1, (TP2, SP, FULL, "training.global_batch_size=2")),
    "pp4-first": (4, 0, PP4),
    "pp4-middle-selective": (4, 2, (*PP4, SELECTIVE)),
    "tp2-sp-pp2-vpp2-tied-first": (8, 0, (TP2, SP, PP2, *VPP2, TIED)),
    "tp2-sp-pp2-vpp2-tied-last": (8, 7, (TP2, SP, PP2, *VPP2, TIED, "training.seq_length=512")),
    "cp2-grouped-tp2": (4, 3, (CP2, TP2, *GROUPED, "training.global_batch_size=2")),
}


def small(processes: int, overrides: tuple[str, ...]) -> ResolvedConfig:
    return resolve(load_config(None, [*SMALL, f"parallel.world_size={processes}", *overrides]))


@pytest.fixture(params=LAYOUTS, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[ResolvedConfig, DryRun]:
    processes, rank, overrides = LAYOUTS[request.param]
    config = small(processes, overrides)
    return config, dry_run(config, rank)


def test_memory_is_what_the_arithmetic_says(case: tuple[ResolvedConfig, DryRun]) -> None:
    config, done = case
    planned = stage_memory(config, place_of(config, done.rank).stage)
    # Megatron-Core pads its buffers, which shows at this size.
    assert planned.state == pytest.approx(done.state_bytes, rel=0.01)
    assert planned.total == pytest.approx(done.peak_bytes, rel=0.05)


def test_operations_and_bytes_sent_are_exact(case: tuple[ResolvedConfig, DryRun]) -> None:
    config, done = case
    assert step_flops(config, done.rank) == done.flops
    assert step_traffic(config, done.rank) == done.sent_bytes


def test_a_rank_of_1024_of_which_nobody_else_is_there() -> None:
    """72B cut to two layers: the sizes of its matrices, and the layout of 1,024 processes."""
    layout = ("parallel.tensor_model_parallel_size=8", SP, PP2)
    cut = ("model.preset=qwen-72b", "model.num_layers=2", "training.seq_length=2048", "training.global_batch_size=2048")
    config = resolve(load_config(None, ["parallel.platform=cpu", *cut, *layout, "parallel.world_size=1024"]))
    config = dataclasses.replace(config, num_microbatches=1)
    done = dry_run(config, 1023)
    assert stage_memory(config, 1).total == pytest.approx(done.peak_bytes, rel=0.02)
    assert step_flops(config, 1023, 1) == done.flops
    assert step_traffic(config, 1023, 1) == done.sent_bytes


def test_nothing_of_a_dry_run_is_left() -> None:
    apply, kept = torch.nn.Module._apply, KEPT.buffer
    config = small(2, (TP2, "training.global_batch_size=1"))
    first, second = (dry_run(config, 0) for _ in range(2))
    assert first == second
    assert KEPT.buffer is kept
    assert not dist.is_initialized()
    assert torch.nn.Module._apply is apply
    # Neither tensors without content, kept in a table, nor the mode.
    assert type(torch.zeros(2)) is torch.Tensor
    assert torch.nn.Linear(2, 2).double().weight.dtype == torch.float64
