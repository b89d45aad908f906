"""A rank's place in the layout: tensor fastest, then context, data, pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_megatron.config.resolve import ResolvedConfig


@dataclass(frozen=True, kw_only=True)
class Place:
    """Numbers of a rank within its groups."""

    tensor: int
    context: int
    data: int
    stage: int


def place_of(config: ResolvedConfig, rank: int) -> Place:
    """The place of a rank of the job."""
    rest, tensor = divmod(rank, config.parallel.tensor_model_parallel_size)
    rest, context = divmod(rest, config.parallel.context_parallel_size)
    stage, data = divmod(rest, config.data_parallel_size)
    return Place(tensor=tensor, context=context, data=data, stage=stage)


def is_last(config: ResolvedConfig, stage: int) -> bool:
    """Whether a stage has the output layer."""
    return stage == config.parallel.pipeline_model_parallel_size - 1


def span_of(config: ResolvedConfig, axis: str) -> int:
    """Consecutive ranks among which the members of a group lie: `tensor`, `context`, `data` or `pipeline`."""
    parallel = config.parallel
    if axis == "tensor":
        return parallel.tensor_model_parallel_size
    if axis == "context":
        return parallel.tensor_model_parallel_size * parallel.context_parallel_size
    if axis == "data":
        return config.world_size // parallel.pipeline_model_parallel_size
    return config.world_size
