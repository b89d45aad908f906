"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from qwen_megatron.config.optimizer import OptimizerConfig


def learning_rate(step: int, optimizer: OptimizerConfig) -> float:
    """Rate of one step: linear warm-up to `lr`, cosine down to `min_lr` at `lr_decay_iters`, `min_lr` after.

    Args:
        step: Number of the optimizer step, the first is 1.
        optimizer: Resolved options.
    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983); Qwen Technical Report, section 2.4.
    """
    if step <= optimizer.lr_warmup_iters:
        return optimizer.lr * step / optimizer.lr_warmup_iters
    if step >= optimizer.lr_decay_iters:
        return optimizer.min_lr
    progress = (step - optimizer.lr_warmup_iters) / (optimizer.lr_decay_iters - optimizer.lr_warmup_iters)
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
