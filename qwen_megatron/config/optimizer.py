"""Section `optimizer`: AdamW, the learning rate's schedule and gradient clipping."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.setting import about, count

LARGEST_DEFAULT_WARMUP = 2000


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Section `optimizer` as a user gives it."""

    lr: float = field(default=3e-4, metadata=about("Peak learning rate.", above=0.0, maximum=10.0))
    min_lr: float | None = field(
        default=None, metadata=about("Learning rate at the end of the decay. Default: a tenth of `lr`.", minimum=0.0)
    )
    lr_warmup_iters: int | None = field(
        default=None,
        metadata=count(
            "Optimizer steps of linear warm-up from 0 to `lr`. Default: 1 % of `lr_decay_iters`, at most "
            f"{LARGEST_DEFAULT_WARMUP}.",
            minimum=0,
        ),
    )
    lr_decay_iters: int | None = field(
        default=None,
        metadata=count(
            "Optimizer step at which the rate reaches `min_lr`, warm-up included; it stays there after. Default: "
            "`training.train_iters`."
        ),
    )
    lr_decay_style: str = field(
        default="cosine",
        metadata=about(
            "Shape after the warm-up: `cosine` or `linear` down to `min_lr`, `constant` at `lr`, or `WSD` (warm-up, "
            "stable, decay): constant until the last `lr_wsd_decay_iters`, then linear down to `min_lr`.",
            choices=("cosine", "linear", "constant", "WSD"),
        ),
    )
    lr_wsd_decay_iters: int | None = field(
        default=None,
        metadata=count("Optimizer steps of the decay of `WSD`. Default: a tenth of `lr_decay_iters`, at least 1."),
    )
    weight_decay: float = field(
        default=0.1, metadata=about("Decoupled weight decay; norms and biases have none.", minimum=0.0, maximum=10.0)
    )
    adam_beta1: float = field(default=0.9, metadata=about("Decay of the gradient's mean.", minimum=0.0, below=1.0))
    adam_beta2: float = field(
        default=0.95, metadata=about("Decay of the gradient's mean square.", minimum=0.0, below=1.0)
    )
    adam_eps: float = field(
        default=1e-8, metadata=about("Added to the root of the mean square.", above=0.0, maximum=1.0)
    )
    clip_grad: float = field(
        default=1.0,
        metadata=about("Largest L2 norm of the whole model's gradient; 0 turns clipping off.", minimum=0.0),
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(OptimizerOptions):
    """Section `optimizer`, every value fixed."""

    min_lr: float = field(metadata=about("Learning rate at the end of the decay.", minimum=0.0))
    lr_warmup_iters: int = field(metadata=count("Optimizer steps of linear warm-up.", minimum=0))
    lr_decay_iters: int = field(metadata=count("Optimizer step at which the rate reaches `min_lr`."))
    lr_wsd_decay_iters: int = field(metadata=count("Optimizer steps of the decay of `WSD`."))
