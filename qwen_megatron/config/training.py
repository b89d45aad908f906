"""Section `training`: how long, in what precision, on what batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.setting import about, count

PAPER_SEQ_LENGTH = 2048


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Section `training` as a user gives it; the defaults are those of the Qwen report."""

    precision: str = field(
        default="bf16",
        metadata=about(
            "`bf16`: weights and activations in bfloat16, master weights, gradients and optimizer in fp32; `fp32`: all "
            "in fp32.",
            choices=("bf16", "fp32"),
        ),
    )
    train_iters: int = field(
        default=572_205,
        metadata=count(
            "Optimizer steps of the whole run. Default: the 2.4 trillion tokens of Qwen-7B at the default batch."
        ),
    )
    exit_iter: int | None = field(
        default=None,
        metadata=count(
            "Save and stop after this optimizer step although the schedule runs to `train_iters`; a later start goes "
            "on from there. Default: run to the end."
        ),
    )
    seed: int = field(
        default=1234,
        metadata=about("Fixes initial weights, order of the data and dropout.", minimum=0, maximum=(1 << 63) - 1),
    )
    micro_batch_size: int = field(default=1, metadata=count("Sequences a process computes at a time.", maximum=1 << 20))
    global_batch_size: int = field(
        default=2048,
        metadata=count("Sequences of one optimizer step over all processes.", maximum=1 << 30),
    )
    seq_length: int | None = field(
        default=None,
        metadata=count(
            f"Context trained on, in tokens. Default: {PAPER_SEQ_LENGTH}, or `model.seq_length` if that is shorter.",
            maximum=1 << 32,
        ),
    )
    eval_interval: int = field(
        default=1000, metadata=count("Optimizer steps between evaluations on the held-out samples.")
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """Section `training`, every value fixed; `exit_iter` None runs to the end."""

    seq_length: int = field(metadata=count("Context trained on, in tokens.", maximum=1 << 32))
