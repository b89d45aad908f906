"""Runs any rank of a job of any size in this process, on tensors that have sizes but no content."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.model.rotary import kept_table
from qwen_megatron.parallel.groups import Groups, build_groups, destroy_groups
from qwen_megatron.planning.ledger import Ledger
from qwen_megatron.platforms.cpu import CpuPlatform
from qwen_megatron.platforms.shims.alone import without_peers
from qwen_megatron.train.objective import NextTokenLoss
from qwen_megatron.train.optimizer import allocate_moments
from qwen_megatron.train.step import train_step
from qwen_megatron.train.trainable import Trainable, build_trainable


class AnyMachine(CpuPlatform):
    """The CPU platform as it is where the processor multiplies bf16, for groups without peers."""

    backend = "fake"

    def products(self, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What one optimizer step of a rank did.

    Attributes:
        rank: Of the job.
        num_microbatches: Of the step.
        state_bytes: Live before it: weights, gradients, optimizer.
        peak_bytes: Most that was live at once.
        flops: Operations of products and attention, recomputation included.
        sent_bytes: Of each kind of collective: size of the whole tensor, in groups of more than one; of transfers what
            is sent or received.
        calls: How many there were of each.
    """

    rank: int
    num_microbatches: int
    state_bytes: int
    peak_bytes: int
    flops: int
    sent_bytes: Mapping[str, int]
    calls: Mapping[str, int]


def dry_run(config: ResolvedConfig, rank: int, num_microbatches: int | None = None) -> DryRun:
    """One optimizer step of a rank, by the program that trains.

    Args:
        config: Of the job, on the CPU platform; no corpus is opened.
        rank: Of the job.
        num_microbatches: To take instead of the configured ones: memory stops growing when the pipeline is full.
    """
    count = config.num_microbatches if num_microbatches is None else num_microbatches
    # In a thread of its own: the loss keeps a buffer for each, and tensors without content must not meet real ones.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(run_rank, config, rank, count).result()


def run_rank(config: ResolvedConfig, rank: int, count: int) -> DryRun:
    """`dry_run` in this thread, with so many micro-batches."""
    shape = BatchShape(micro_batch_size=config.training.micro_batch_size, seq_length=config.training.seq_length)
    with groups_of_nobody(config, rank) as (groups, platform), without_peers(), Ledger(axes_of(groups)) as ledger:
        trainable = build_trainable(config, groups, platform, fills_weights=False)
        # As from the second step on: the optimizer makes its moments at the first.
        allocate_moments(trainable.trained)
        ledger.start()
        state_bytes = ledger.live_bytes
        step(trainable, config, shape, count)
    return DryRun(
        rank=rank,
        num_microbatches=count,
        state_bytes=state_bytes,
        peak_bytes=ledger.peak_bytes,
        flops=ledger.flops,
        sent_bytes=dict(ledger.sent_bytes),
        calls=dict(ledger.calls),
    )


def axes_of(groups: Groups) -> dict[str, str]:
    """What the ranks of each group share, by the group's name."""
    return {
        group.group_name: axis
        for axis, group in (
            ("tensor", groups.tp),
            ("pipeline", groups.pp),
            ("context", groups.cp),
            ("data", groups.dp),
            ("data", groups.dp_cp),
            ("embedding", groups.collection.embd),
        )
        if group is not None
    }


def step(trainable: Trainable, config: ResolvedConfig, shape: BatchShape, count: int) -> None:
    """Forward, backward and update."""
    train_step(
        trainable,
        NextTokenLoss(),
        (batch_of(shape) for _ in itertools.count()),
        shape=shape,
        num_microbatches=count,
        step=1,
        learning_rate=config.optimizer.lr,
        clip_grad=config.optimizer.clip_grad,
    )


def batch_of(shape: BatchShape) -> Batch:
    """A micro-batch in which every token counts."""
    size = (shape.micro_batch_size, shape.seq_length)
    return Batch(
        tokens_bs=torch.zeros(size, dtype=torch.int64),
        labels_bs=torch.zeros(size, dtype=torch.int64),
        loss_mask_bs=torch.ones(size),
        position_ids_bs=torch.zeros(size, dtype=torch.int64),
        document_ids_bs=None,
        samples=tuple(range(shape.micro_batch_size)),
    )


@contextlib.contextmanager
def groups_of_nobody(config: ResolvedConfig, rank: int) -> Iterator[tuple[Groups, AnyMachine]]:
    """The groups of a rank whose peers do not exist; what is sent goes nowhere."""
    platform, parallel = AnyMachine(), config.parallel
    platform.prepare()
    destroy_groups()
    # Tables of angles are kept for the process: those of a dry run must not meet real ones.
    kept_table.cache_clear()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=config.world_size)
    try:
        groups = build_groups(
            tensor_model_parallel_size=parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
            context_parallel_size=parallel.context_parallel_size,
            device=torch.device("cpu"),
            timeout_seconds=parallel.collective_timeout_seconds,
        )
        yield groups, platform
    finally:
        destroy_groups()
        kept_table.cache_clear()
