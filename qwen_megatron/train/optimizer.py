"""The distributed optimizer, its gradient norm and its update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from qwen_megatron.config.sections.optimizer import OptimizerConfig
from qwen_megatron.model.megatron_config import DTYPES
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms.norms import sum_of_squares

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(
    model_chunks: Sequence[DistributedDataParallel], options: OptimizerConfig, precision: str, groups: Groups
) -> DistributedOptimizer:
    """AdamW whose fp32 master weights and moments are split over the data-parallel ranks.

    Weight decay is off for norms and biases (Megatron-Core's rule: parameters with one axis).

    Args:
        model_chunks: Those of this rank, wrapped for data parallelism.
        options: Resolved options.
        precision: `bf16` or `fp32`.
        groups: That the model chunks were built on.
    """
    config = MegatronOptimizerConfig(
        optimizer="adam",
        lr=options.lr,
        min_lr=options.min_lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_eps=options.adam_eps,
        clip_grad=options.clip_grad,
        bf16=precision == "bf16",
        params_dtype=DTYPES[precision],
        use_distributed_optimizer=True,
    )
    chained = get_megatron_optimizer(
        config, list(model_chunks), use_gloo_process_groups=False, pg_collection=groups.collection
    )
    # One optimizer: Megatron-Core makes a second one only for experts.
    (optimizer,) = chained.chained_optimizers
    # Megatron-Core leaves a group's share of the decay to its own scheduler, which is not used here.
    for group in optimizer.param_groups:
        group["weight_decay"] = options.weight_decay * group["wd_mult"]
    return optimizer


def allocate_moments(optimizer: DistributedOptimizer) -> None:
    """Gives every weight moments of 0, as before the first step, so that they can be saved or read in place.

    The optimizer itself makes them at its first step only.
    """
    groups = optimizer.state_dict()["optimizer"]["param_groups"]
    optimizer.load_state_dict({"optimizer": {"param_groups": [{**group, "step": 0} for group in groups]}})
    for state in optimizer.optimizer.state.values():
        for name in MOMENTS:
            state[name].zero_()


def squared_gradient_norm(optimizer: DistributedOptimizer) -> torch.Tensor:
    """Square of the L2 norm of the whole model's gradient, each weight counted once, on every rank and layout the same.

    Returns:
        fp64 scalar on the device; nobody waits for it here.
    """
    squares = sum_of_squares(optimizer.get_main_grads_for_grad_norm())
    # A rank without gradients of its own has their sum on the host.
    squares = squares.to(next(optimizer.model_chunks[0].parameters()).device)
    dist.all_reduce(squares, group=optimizer.get_grad_stats_parallel_group())
    return squares


def gradient_norm(optimizer: DistributedOptimizer) -> float:
    """The norm as a number."""
    return squared_gradient_norm(optimizer).sqrt().item()


def update(optimizer: DistributedOptimizer, learning_rate: float, clip_grad: float, norm: float) -> None:
    """Clips to `clip_grad` (0 turns it off) and takes one step at `learning_rate`."""
    if 0 < clip_grad < norm:
        # In place: Megatron-Core's own clipping without Transformer Engine makes a copy of every gradient first.
        torch._foreach_mul_(
            [param.grad for param in optimizer.get_parameters() if param.grad is not None], clip_grad / norm
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step_with_ready_grads()
