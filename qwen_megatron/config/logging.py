"""Section `logging`: what is reported while training."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_megatron.config.setting import about, count


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Section `logging`."""

    log_interval: int = field(
        default=1, metadata=count("Optimizer steps between lines on the console; metrics.jsonl has every step.")
    )
    tensorboard: bool = field(default=True, metadata=about("Write TensorBoard files."))
    peak_tflops_per_rank: float | None = field(
        default=None,
        metadata=about(
            "Peak of one device in 10^12 floating-point operations a second, for the model FLOPs utilisation (H100, "
            "dense bf16: 989). Default: not reported.",
            above=0.0,
            maximum=1e9,
        ),
    )
