"""Steps that were measured, ours on one H200 and Megatron-LM's published ones on H100s, to hold the arithmetic against.

Megatron-LM's table (its README, 2024: sequences of 4096, vocabulary 131,072, attention counted half) names parameters,
GPUs, tensor and pipeline sizes and TFLOP/s. What it does not say is assumed, the same for all rows: micro-batches of 2
sequences, 1,152 in a step (12 micro-batches; with 8 the largest row would be missed by 11 %), shapes of the usual
proportions with these counts of parameters, overlapped data parallelism, sequence parallelism. Hardware constants are
those of the hardware file; only what a launch leaves idle is Megatron-LM's own, fitted on two rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.planning.machine import Machine
from qwen_megatron.planning.step_time import OURS, Engine, step_time

# Loss in blocks of 2,048 tokens, whose weight gradient went through bf16 and a copy in fp32: read and written thrice.
EXPERIMENT = dataclasses.replace(OURS, name="experimental patches", head_gradient_bytes=20.0, loss_block_tokens=2048)


@dataclass(frozen=True, kw_only=True)
class OneGpu:
    """A step on one H200, sequences of 2048, 16 of them in a step (docs/gpu.md).

    Attributes:
        name: Of the model.
        overrides: That make it.
        seconds: Of a step.
        gib: Most memory that was allocated.
    """

    name: str
    overrides: tuple[str, ...]
    seconds: float
    gib: float

    @property
    def config(self) -> ResolvedConfig:
        """Resolved."""
        shape = ("training.seq_length=2048", "training.global_batch_size=16")
        return resolve(load_config(None, [*self.overrides, *shape]))


SLICE = ("model.preset=qwen-7b", "model.num_layers=8")
H200_ROWS = tuple(
    OneGpu(name=name, overrides=(*model, f"training.micro_batch_size={micro}"), seconds=seconds, gib=gib)
    for name, model, micro, seconds, gib in (
        ("1.8B, micro-batch 4", ("model.preset=qwen-1.8b",), 4, 0.862, 45.5),
        ("1.8B, micro-batch 8", ("model.preset=qwen-1.8b",), 8, 0.739, 58.0),
        ("7B with 8 layers, micro-batch 2", SLICE, 2, 0.996, 56.7),
        ("7B with 8 layers, micro-batch 4", SLICE, 4, 0.943, 60.9),
    )
)


def extra_bytes(config: ResolvedConfig) -> int:
    """What the experiment held besides: an fp32 copy of the gradient of the output layer's weight."""
    return 4 * config.padded_vocab_size * config.model.hidden_size


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of Megatron-LM's table.

    Attributes:
        name: Parameters, as the table has them.
        gpus, tensor, pipeline: Layout.
        layers, hidden, heads: Assumed shape; feed-forward layers of 4 x hidden, which have as many weights as gated
            ones of 8/3 x hidden.
        tflops: Useful operations a second and GPU, 10^12.
    """

    name: str
    gpus: int
    tensor: int
    pipeline: int
    layers: int
    hidden: int
    heads: int
    tflops: float

    @property
    def config(self) -> ResolvedConfig:
        """Resolved, with what is assumed."""
        has_tensor = str(self.tensor > 1).lower()
        values = {
            "model.num_layers": self.layers,
            "model.hidden_size": self.hidden,
            "model.ffn_hidden_size": self.hidden * 8 // 3 // 16 * 16,
            "model.num_attention_heads": self.heads,
            "model.vocab_size": 131_072,
            "model.seq_length": 4096,
            "training.seq_length": 4096,
            "training.micro_batch_size": 2,
            "training.global_batch_size": 1152,
            "parallel.world_size": self.gpus,
            "parallel.tensor_model_parallel_size": self.tensor,
            "parallel.pipeline_model_parallel_size": self.pipeline,
            "parallel.sequence_parallel": has_tensor,
            "parallel.overlap_grad_reduce": "true",
            "parallel.overlap_param_gather": "true",
        }
        return resolve(load_config(None, [f"{key}={value}" for key, value in values.items()]))


ROWS = tuple(
    Published(
        name=name, gpus=gpus, tensor=tensor, pipeline=stages, layers=layers, hidden=hidden, heads=heads, tflops=tflops
    )
    for name, gpus, tensor, stages, layers, hidden, heads, tflops in (
        ("1.7B", 48, 1, 1, 24, 2048, 16, 365),
        ("7.1B", 96, 2, 1, 30, 4096, 32, 435),
        ("16B", 192, 4, 1, 32, 6144, 48, 466),
        ("32B", 384, 8, 1, 37, 8192, 64, 440),
        ("70B", 768, 8, 2, 84, 8192, 64, 404),
    )
)
FITTED_ON = ("1.7B", "32B")


def tflops_of(row: Published, machine: Machine, engine: Engine) -> float:
    """Useful operations a second and GPU by arithmetic, 10^12."""
    config = row.config
    seconds = step_time(config, machine, engine).total
    return config.flops_per_token * config.tokens_per_step / config.world_size / seconds / 1e12


def fitted(machine: Machine, rows: Sequence[Published] = ROWS) -> Engine:
    """Megatron-LM as an engine: what a launch leaves idle, in microseconds, that fits `FITTED_ON` best."""

    def error(launch_us: float) -> float:
        engine = Engine(name="Megatron-LM", launches=OURS.launches, launch_us=launch_us)
        chosen = [row for row in rows if row.name in FITTED_ON]
        return sum((tflops_of(row, machine, engine) / row.tflops - 1) ** 2 for row in chosen)

    best = min(range(5, 81), key=error)
    return Engine(name="Megatron-LM", launches=OURS.launches, launch_us=float(best))
