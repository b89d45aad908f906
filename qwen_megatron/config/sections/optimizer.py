"""Section `optimizer`: AdamW, the learning rate's schedule and gradient clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from data_tools.settings.records import Count, NonNegative, record

# Of the documented default of `lr_warmup_iters`.
LARGEST_DEFAULT_WARMUP = 2000


@record
class OptimizerConfig:
    """Section `optimizer`."""

    lr: Annotated[float, Interval(gt=0.0, le=10.0)] = 0.0003
    """Peak learning rate."""
    min_lr: Annotated[float, Interval(ge=0.0)]
    """Learning rate at the end of the decay. Default: a tenth of `lr`."""
    lr_warmup_iters: NonNegative
    """Optimizer steps of linear warm-up from 0 to `lr`. Default: 1 % of `lr_decay_iters`, at most 2000."""
    lr_decay_iters: Count
    """Optimizer step at which the rate reaches `min_lr`, warm-up included; it stays there after. Default:
    `training.train_iters`."""
    lr_decay_style: Literal["cosine", "linear", "constant", "WSD"] = "cosine"
    """Shape after the warm-up: `cosine` or `linear` down to `min_lr`, `constant` at `lr`, or `WSD` (warm-up,
    stable, decay): constant until the last `lr_wsd_decay_iters`, then linear down to `min_lr`."""
    lr_wsd_decay_iters: Count
    """Optimizer steps of the decay of `WSD`. Default: a tenth of `lr_decay_iters`, at least 1."""
    weight_decay: Annotated[float, Interval(ge=0.0, le=10.0)] = 0.1
    """Decoupled weight decay; norms and biases have none."""
    adam_beta1: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.9
    """Decay of the gradient's mean."""
    adam_beta2: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.95
    """Decay of the gradient's mean square."""
    adam_eps: Annotated[float, Interval(gt=0.0, le=1.0)] = 1e-08
    """Added to the root of the mean square."""
    clip_grad: Annotated[float, Interval(ge=0.0)] = 1.0
    """Largest L2 norm of the whole model's gradient; 0 turns clipping off."""
