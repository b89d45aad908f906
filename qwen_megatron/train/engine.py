"""Model and optimizer of one rank, ready to train."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.model.builder import QwenModel, build_model, unwrapped
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import Platform
from qwen_megatron.platforms.communication import listen
from qwen_megatron.train.optimizer import build_optimizer
from qwen_megatron.train.phases import Phases


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a step works on; the weights inside change, the references do not.

    Attributes:
        chunks: Pieces of the model on this rank, each wrapped for data parallelism; more than one if the pipeline is
            interleaved.
        optimizer: Megatron-Core's distributed optimizer.
        groups: Layout.
        platform: Machine.
        seq_length: Tokens a sample.
        micro_batch_size: Samples a micro-batch.
        num_microbatches: Micro-batches of a step of the full batch on every rank.
        mask_documents: Documents packed into a sequence do not see each other.
        dropout_seed: Seed of the masks of dropout; None if nothing is dropped.
        phases: What this rank is doing; Megatron-Core's schedules and optimizer report to it.
    """

    chunks: list[DistributedDataParallel]
    optimizer: DistributedOptimizer
    groups: Groups
    platform: Platform
    seq_length: int
    micro_batch_size: int
    num_microbatches: int
    mask_documents: bool = False
    dropout_seed: int | None = None
    phases: Phases = field(default_factory=Phases)

    @property
    def models(self) -> list[QwenModel]:
        """The pieces without their wrappers."""
        return [unwrapped(chunk) for chunk in self.chunks]


def build_engine(config: ResolvedConfig, groups: Groups, platform: Platform) -> Engine:
    """Builds and initialises this rank's share of the model and its optimizer.

    Raises:
        PlatformError: if the implementation asked for cannot run here.
    """
    num_virtual_stages = config.parallel.virtual_pipeline_model_parallel_size
    models = [
        build_model(
            config.model,
            groups,
            precision=config.training.precision,
            sequence_parallel=config.parallel.sequence_parallel,
            recompute=config.parallel.recompute_granularity,
            virtual_stage=stage,
            num_virtual_stages=num_virtual_stages,
            layers_in_first_stage=config.parallel.num_layers_in_first_pipeline_stage,
            layers_in_last_stage=config.parallel.num_layers_in_last_pipeline_stage,
            seed=config.training.seed,
        )
        for stage in (range(num_virtual_stages) if num_virtual_stages else (None,))
    ]
    chunks = wrap(
        models,
        groups,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
    optimizer = build_optimizer(chunks, config.optimizer, config.training.precision)
    phases = Phases()
    for megatron_config in (optimizer.config, *(unwrapped(chunk).config for chunk in chunks)):
        megatron_config.timers = phases
    listen(functools.partial(phases.enter, "communication"))
    return Engine(
        chunks=chunks,
        optimizer=optimizer,
        groups=groups,
        platform=platform,
        seq_length=config.training.seq_length,
        micro_batch_size=config.training.micro_batch_size,
        num_microbatches=config.num_microbatches,
        mask_documents=config.data.mask_documents,
        dropout_seed=config.training.seed if config.model.hidden_dropout or config.model.attention_dropout else None,
        phases=phases,
    )


def wrap(
    models: Sequence[torch.nn.Module],
    groups: Groups,
    *,
    overlap_grad_reduce: bool = False,
    overlap_param_gather: bool = False,
) -> list[DistributedDataParallel]:
    """Gradient buffers in fp32, reduced and split over the data-parallel ranks."""
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap_grad_reduce,
        overlap_param_gather=overlap_param_gather,
        check_for_nan_in_grad=False,
    )
    chunks = [
        DistributedDataParallel(
            config=unwrapped(model).config, ddp_config=options, module=model, pg_collection=groups.collection
        )
        for model in models
    ]
    schedule_options(chunks, overlap_grad_reduce=overlap_grad_reduce, overlap_param_gather=overlap_param_gather)
    return chunks


def schedule_options(
    chunks: list[DistributedDataParallel], *, overlap_grad_reduce: bool, overlap_param_gather: bool
) -> None:
    """What Megatron-Core's schedules look up in the model's configuration: one function, or one for each chunk."""

    def one_or_all(functions: list[Any]) -> Any:
        return functions[0] if len(functions) == 1 else functions

    for chunk in chunks:
        config = unwrapped(chunk).config
        config.finalize_model_grads_func = finalize_model_grads
        config.no_sync_func = one_or_all([chunk.no_sync for chunk in chunks])
        if overlap_grad_reduce and len(chunks) > 1:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in chunks]
        if overlap_param_gather and len(chunks) > 1:
            config.param_sync_func = [chunk.start_param_sync for chunk in chunks]
