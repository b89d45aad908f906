"""Which kernels a configuration runs with on a machine."""

from __future__ import annotations

from qwen_megatron.config.arithmetic.kept import CPU, FUSED, TORCH, Kernels
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.planning.machine import Machine


def kernels_on(config: ResolvedConfig, machine: Machine) -> Kernels:
    """The machine's, unless the configuration asks for torch's."""
    name = machine.kernels
    if name == FUSED and config.model.implementation == "torch":
        name = TORCH
    if config.parallel.platform == "cpu":
        name = CPU
    return Kernels(name=name, device_bytes=machine.memory_bytes)
