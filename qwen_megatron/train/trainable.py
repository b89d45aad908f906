"""A named model on this rank, ready to train or to be asked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.optimizer import OptimizerConfig
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.model.megatron_config import DTYPES
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.model.user_buffers import start_user_buffers
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import Platform
from qwen_megatron.platforms.comm_timer import report_comm_to
from qwen_megatron.platforms.transfer import Copies
from qwen_megatron.train.names import MAIN, NAME
from qwen_megatron.train.optimizer import build_optimizer
from qwen_megatron.train.step_timers import StepTimers


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A model, its optimizer if it has one, and the groups it was built on; several may live in one process.

    The weights inside change, the references do not.

    Attributes:
        name: Under which it is saved and found again.
        model: Its architecture.
        head: `language_model` or `scalar`.
        model_chunks: Parts of the model on this rank, more than one if the pipeline is interleaved; wrapped for data
            parallelism if it is trained, bare if not.
        optimizer: Megatron-Core's distributed optimizer; None for a model that is only asked.
        groups: Layout.
        platform: Machine.
        dropout_seed: Seed of the masks of dropout; None if nothing is dropped.
        timers: What this rank is doing; Megatron-Core's schedules and optimizer report to it.
    """

    name: str
    model: ModelConfig
    head: str
    model_chunks: list[DistributedDataParallel]
    optimizer: DistributedOptimizer | None
    groups: Groups
    platform: Platform
    dropout_seed: int | None = None
    timers: StepTimers = field(default_factory=StepTimers)

    @property
    def models(self) -> list[QwenModel]:
        """The model chunks without their wrappers."""
        return [unwrapped(chunk) for chunk in self.model_chunks]

    @property
    def trained(self) -> DistributedOptimizer:
        """The optimizer.

        Raises:
            ValueError: if the model has none.
        """
        if self.optimizer is None:
            raise ValueError(f"the model {self.name!r} has no optimizer; build it with one to train it")
        return self.optimizer

    @functools.cached_property
    def pipeline(self) -> P2PCommunicator:
        """Sends between the stages of this model's pipeline."""
        return P2PCommunicator(pp_group=self.groups.pp, config=self.models[0].config)

    @functools.cached_property
    def copies(self) -> Copies:
        """How micro-batches come to this rank's device."""
        return self.platform.copies(self.groups.device)

    def timed(self) -> AbstractContextManager[None]:
        """While it is open, this thread's communication counts for this model's timers."""
        return report_comm_to(functools.partial(self.timers.enter, "communication"))


def build_trainable(
    config: ResolvedConfig,
    groups: Groups,
    platform: Platform,
    *,
    name: str = MAIN,
    head: str = LANGUAGE_MODEL,
    model: ModelConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    is_trained: bool = True,
    seed: int | None = None,
    fills_weights: bool = True,
    timers: StepTimers | None = None,
) -> Trainable:
    """Builds and initialises this rank's share of a model, and its optimizer.

    Args:
        config: Layout and precision, and what is not given otherwise.
        groups: Of the layout; any number of models may be built on them.
        platform: Machine.
        name: Of the model in its job.
        head: `language_model` or `scalar`.
        model: Architecture; None for the configuration's.
        optimizer: Options; None for the configuration's.
        is_trained: With an optimizer and gradient buffers.
        seed: Of the first weights and of dropout; None for `training.seed`.
        fills_weights: Draw the first weights; False leaves them as memory comes.
        timers: Clock of this rank, shared by the models of a job; None for one of its own.
    Raises:
        PlatformError: if the implementation asked for cannot run here.
        ValueError: if the name is none.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"a model cannot be called {name!r}; use a letter, then letters, digits, - and _")
    model, parallel = model or config.model, config.parallel
    seed = config.training.seed if seed is None else seed
    timers = timers or StepTimers()
    num_virtual_stages = parallel.virtual_pipeline_model_parallel_size
    if parallel.tp_comm_overlap:
        start_user_buffers(
            config.training.seq_length * config.rows_per_micro_batch // groups.cp.size(),
            model.hidden_size,
            groups.tp.size(),
            DTYPES[config.training.precision],
            fp8=config.training.fp8 != "none",
            outer_layers_bf16=config.training.fp8_first_last_layers_bf16,
        )
    model_chunks = [
        build_model(
            model,
            groups,
            precision=config.training.precision,
            sequence_parallel=parallel.sequence_parallel,
            recompute=parallel.recompute_granularity,
            virtual_stage=stage,
            num_virtual_stages=num_virtual_stages,
            layers_in_first_stage=parallel.num_layers_in_first_pipeline_stage,
            layers_in_last_stage=parallel.num_layers_in_last_pipeline_stage,
            seed=seed if fills_weights else None,
            head=head,
            deterministic=config.training.deterministic,
            fp8=config.training.fp8,
            fp8_first_last_layers_bf16=config.training.fp8_first_last_layers_bf16,
            cuda_graph_impl=parallel.cuda_graph_impl if is_trained else "none",
            tp_comm_overlap=parallel.tp_comm_overlap,
        )
        for stage in (range(num_virtual_stages) if num_virtual_stages else (None,))
    ]
    built = None
    if is_trained:
        model_chunks = wrap(
            model_chunks,
            groups,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            bucket_size=parallel.gradient_bucket_size,
        )
        built = build_optimizer(model_chunks, optimizer or config.optimizer, config.training.precision, groups)
        built.config.timers = timers
    for chunk in model_chunks:
        unwrapped(chunk).config.timers = timers
    return Trainable(
        name=name,
        model=model,
        head=head,
        model_chunks=model_chunks,
        optimizer=built,
        groups=groups,
        platform=platform,
        dropout_seed=seed if is_trained and (model.hidden_dropout or model.attention_dropout) else None,
        timers=timers,
    )


def wrap(
    models: Sequence[torch.nn.Module],
    groups: Groups,
    *,
    overlap_grad_reduce: bool = False,
    overlap_param_gather: bool = False,
    bucket_size: int | None = None,
) -> list[DistributedDataParallel]:
    """Gradient buffers in fp32, reduced and split over the data-parallel ranks; see section `parallel`."""
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap_grad_reduce,
        overlap_param_gather=overlap_param_gather,
        bucket_size=bucket_size,
        check_for_nan_in_grad=False,
    )
    model_chunks = [
        DistributedDataParallel(
            config=unwrapped(model).config, ddp_config=options, module=model, pg_collection=groups.collection
        )
        for model in models
    ]
    schedule_options(
        model_chunks, groups, overlap_grad_reduce=overlap_grad_reduce, overlap_param_gather=overlap_param_gather
    )
    return model_chunks


def finalize_gradients(
    groups: Groups,
    model_chunks: list[DistributedDataParallel],
    num_tokens: torch.Tensor | None = None,
    **others: Any,
) -> None:
    """Megatron-Core's end of the backward pass, without its look at the count of tokens, for which the host would wait.

    Args:
        groups: Layout.
        model_chunks: Those of this rank; their gradients are divided by the tokens of the whole batch.
        num_tokens: What counts on this rank of the last stage; 0 elsewhere. Overwritten.
        others: As for Megatron-Core's.
    """
    finalize_model_grads(model_chunks, None, **others)
    if num_tokens is None:
        return
    dist.broadcast(num_tokens, src=groups.last_stage_rank, group=groups.pp)
    dist.all_reduce(num_tokens, group=groups.dp_cp)
    # Where nothing counts, which is refused later, there is nothing to divide.
    scaling = torch.where(num_tokens > 0, 1.0 / num_tokens, 1.0)
    for chunk in model_chunks:
        chunk.scale_gradients(scaling)


def schedule_options(
    model_chunks: list[DistributedDataParallel],
    groups: Groups,
    *,
    overlap_grad_reduce: bool,
    overlap_param_gather: bool,
) -> None:
    """What Megatron-Core's schedules look up in the model's configuration: a function, or one for each model chunk."""

    def one_or_all(functions: list[Any]) -> Any:
        return functions[0] if len(functions) == 1 else functions

    for chunk in model_chunks:
        config = unwrapped(chunk).config
        config.finalize_model_grads_func = functools.partial(finalize_gradients, groups)
        config.no_sync_func = one_or_all([chunk.no_sync for chunk in model_chunks])
        if overlap_grad_reduce and len(model_chunks) > 1:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in model_chunks]
        if overlap_param_gather and len(model_chunks) > 1:
            config.param_sync_func = [chunk.start_param_sync for chunk in model_chunks]
