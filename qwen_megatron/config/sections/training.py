"""Section `training`: how long, in what precision, on what batches."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from data_tools.settings.records import Count, NonNegative, Positive, record
from qwen_megatron.config.arithmetic.ramp import BatchSizes

# Of the documented default of `seq_length`.
PAPER_SEQ_LENGTH = 2048


@record
class TrainingConfig:
    """Section `training`; the defaults are those of the Qwen report."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: weights and activations in bfloat16, master weights, gradients and optimizer in fp32; `fp32`: all in
    fp32."""
    fp8: Literal["none", "delayed", "tensorwise"] = "none"
    """Products of the layers in FP8 (e4m3 forward, e5m2 backward), by Transformer Engine on GPUs of compute capability
    8.9 and later: `delayed` scales by the maxima of earlier steps, `tensorwise` by each tensor's own. Weights stay in
    `precision`."""
    fp8_first_last_layers_bf16: bool = False
    """Leave the first and the last layer of the model in bf16; with `fp8` tensorwise only."""
    train_iters: Count = 572_205
    """Length of the whole run in optimizer steps of `global_batch_size`; a batch-size ramp takes more steps for the
    same samples. Default: the 2.4 trillion tokens of Qwen-7B at the default batch."""
    train_epochs: Annotated[int, Interval(ge=1, le=1 << 20)] | None = None
    """Length of the run in passes over what is trained on of all corpora together, in place of `train_iters`, which is
    worked out when the corpora are opened. Default: `train_iters` says it."""
    exit_iter: Count | None = None
    """Save and stop after this optimizer step although the schedule runs on; a later start goes on from there.
    Default: run to the end."""
    exit_duration_minutes: Positive | None = None
    """Save and stop after the step in which the run has lasted this long; a later start goes on from there.
    Default: no limit."""
    seed: Annotated[int, Interval(ge=0, le=(1 << 63) - 1)] = 1234
    """Fixes initial weights, order of the data and dropout."""
    deterministic: bool = False
    """On GPUs, take only kernels and collectives that give the same bits each time on the same layout; what has none
    is refused. A resume repeats the bits of an uninterrupted run there only with it. On the CPU it is always so."""
    micro_batch_size: Annotated[int, Interval(ge=1, le=1 << 20)] = 1
    """Sequences a process computes at a time."""
    global_batch_size: Annotated[int, Interval(ge=1, le=1 << 30)] = 2048
    """Sequences of one optimizer step over all processes."""
    rampup_start_batch_size: Annotated[int, Interval(ge=1, le=1 << 30)] | None = None
    """Sequences of the first optimizer steps; they rise to `global_batch_size`. The schedule of the learning rate
    goes by samples: lengths given in steps count `global_batch_size` samples each. Default: no ramp."""
    rampup_batch_size_increment: Annotated[int, Interval(ge=1, le=1 << 30)] | None = None
    """Sequences by which the steps of the ramp rise each time; needed with a ramp."""
    rampup_samples: Count | None = None
    """Samples over which the batch rises, in equal parts; needed with a ramp."""
    seq_length: Annotated[int, Interval(ge=1, le=1 << 32)]
    """Context trained on, in tokens. Default: 2048, or `model.seq_length` if that is shorter."""
    eval_interval: Count = 1000
    """Optimizer steps between evaluations on the held-out samples."""
    skip_nonfinite_steps: NonNegative = 0
    """Steps in a row that are left out because loss or gradient is not finite; one more ends the run. Their samples
    are not used again. Default: the first one ends the run."""
    spike_sigmas: Annotated[float, Interval(ge=0.0, le=1e9)] = 10.0
    """A loss so many robust standard deviations above the median of the last 64 is reported, and the step run again
    to tell a machine's error from the data's; 0 turns it off."""

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
