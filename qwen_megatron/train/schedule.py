"""Learning rate as a pure function of the samples consumed."""

from __future__ import annotations

import math

from qwen_megatron.config.sections.optimizer import OptimizerConfig


def learning_rate(step: float, optimizer: OptimizerConfig) -> float:
    """Rate of one step: linear warm-up to `lr`, then the shape of `lr_decay_style`.

    Args:
        step: Samples consumed, this step's included, in full global batches: the number of the step, the first is 1,
            where every step is a full one.
        optimizer: Resolved options.
    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983) and the Qwen Technical Report, section 2.4, for `cosine`;
        Hu et al. 2024 (arXiv 2404.06395) for `WSD`.
    """
    if step <= optimizer.lr_warmup_iters:
        return optimizer.lr * step / optimizer.lr_warmup_iters
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * remaining_share(step, optimizer)


def remaining_share(step: float, optimizer: OptimizerConfig) -> float:
    """How much of the way from `min_lr` up to `lr` is left after the warm-up, 1 down to 0."""
    if optimizer.lr_decay_style == "constant":
        return 1.0
    if step >= optimizer.lr_decay_iters:
        return 0.0
    if optimizer.lr_decay_style == "WSD":
        return min(1.0, (optimizer.lr_decay_iters - step) / optimizer.lr_wsd_decay_iters)
    progress = (step - optimizer.lr_warmup_iters) / (optimizer.lr_decay_iters - optimizer.lr_warmup_iters)
    if optimizer.lr_decay_style == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
