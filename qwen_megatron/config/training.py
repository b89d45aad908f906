"""Section `training`: how long, in what precision, on what batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.ramp import BatchSizes
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
            "Length of the whole run in optimizer steps of `global_batch_size`; a batch-size ramp takes more steps for "
            "the same samples. Default: the 2.4 trillion tokens of Qwen-7B at the default batch."
        ),
    )
    exit_iter: int | None = field(
        default=None,
        metadata=count(
            "Save and stop after this optimizer step although the schedule runs on; a later start goes on from there. "
            "Default: run to the end."
        ),
    )
    exit_duration_minutes: float | None = field(
        default=None,
        metadata=about(
            "Save and stop after the step in which the run has lasted this long; a later start goes on from there. "
            "Default: no limit.",
            above=0.0,
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
    rampup_start_batch_size: int | None = field(
        default=None,
        metadata=count(
            "Sequences of the first optimizer steps; they rise to `global_batch_size`. The schedule of the learning "
            "rate goes by samples: lengths given in steps count `global_batch_size` samples each. Default: no ramp.",
            maximum=1 << 30,
        ),
    )
    rampup_batch_size_increment: int | None = field(
        default=None,
        metadata=count("Sequences by which the steps of the ramp rise each time; needed with a ramp.", maximum=1 << 30),
    )
    rampup_samples: int | None = field(
        default=None,
        metadata=count("Samples over which the batch rises, in equal parts; needed with a ramp."),
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
    skip_nonfinite_steps: int = field(
        default=0,
        metadata=count(
            "Steps in a row that are left out because loss or gradient is not finite; one more ends the run. Their "
            "samples are not used again. Default: the first one ends the run.",
            minimum=0,
        ),
    )
    spike_sigmas: float = field(
        default=10.0,
        metadata=about(
            "A loss so many robust standard deviations above the median of the last 64 is reported, and the step run "
            "again to tell a machine's error from the data's; 0 turns it off.",
            minimum=0.0,
            maximum=1e9,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainingOptions):
    """Section `training`, every value fixed; `exit_iter` None runs to the end."""

    seq_length: int = field(metadata=count("Context trained on, in tokens.", maximum=1 << 32))

    @property
    def batch_sizes(self) -> BatchSizes:
        """Size of every step."""
        full = self.global_batch_size
        start, increment, samples = (
            self.rampup_start_batch_size,
            self.rampup_batch_size_increment,
            self.rampup_samples,
        )
        if start is None or increment is None or samples is None:
            return BatchSizes(full=full, start=full, increment=full, samples=0)
        return BatchSizes(full=full, start=start, increment=increment, samples=samples)

    @property
    def samples_in_all(self) -> int:
        """Samples after which the run is over; its last step may take a few more."""
        return self.train_iters * self.global_batch_size
