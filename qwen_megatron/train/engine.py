"""Model and optimizer of one rank, ready to train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from qwen_megatron.config.resolve import Plan
from qwen_megatron.model.builder import QwenModel, build_model, unwrapped
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import Platform
from qwen_megatron.train.optimizer import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a step works on; the weights inside change, the references do not.

    Attributes:
        model: Wrapped for data parallelism.
        optimizer: Megatron-Core's distributed optimizer.
        groups: Layout.
        platform: Machine.
        seq_length: Tokens a sample.
        micro_batch_size: Samples a micro-batch.
        num_microbatches: Micro-batches a step on every rank.
    """

    model: DistributedDataParallel
    optimizer: DistributedOptimizer
    groups: Groups
    platform: Platform
    seq_length: int
    micro_batch_size: int
    num_microbatches: int

    @property
    def qwen(self) -> QwenModel:
        """The model without its wrappers."""
        return unwrapped(self.model)


def build_engine(plan: Plan, groups: Groups, platform: Platform) -> Engine:
    """Builds and initialises this rank's share of the model and its optimizer.

    Raises:
        PlatformError: if the implementation asked for cannot run here.
    """
    model = build_model(
        plan.model,
        groups,
        precision=plan.training.precision,
        sequence_parallel=plan.parallel.sequence_parallel,
        seed=plan.training.seed,
    )
    wrapped = wrap(model, groups)
    return Engine(
        model=wrapped,
        optimizer=build_optimizer(wrapped, plan.optimizer, plan.training.precision),
        groups=groups,
        platform=platform,
        seq_length=plan.training.seq_length,
        micro_batch_size=plan.training.micro_batch_size,
        num_microbatches=plan.num_microbatches,
    )


def wrap(model: torch.nn.Module, groups: Groups) -> DistributedDataParallel:
    """Gradient buffers in fp32, reduced and split over the data-parallel ranks."""
    config = unwrapped(model).config
    wrapped = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
            overlap_grad_reduce=False,
            check_for_nan_in_grad=False,
        ),
        module=model,
        pg_collection=groups.collection,
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = wrapped.no_sync
    return wrapped
