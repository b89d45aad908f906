"""Measures what a hardware file says, on the machine it runs on.

Products, attention and bytes moved are timed alone. What the host's work for an operation costs, and how much more
torch's kernels move than fused ones, come from two real training steps of one process: one of a narrow model, which is
nearly all host, and one of a wide one. Collectives are timed between two processes of the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_tools.io.atomic_file import write_atomically
from qwen_megatron.config.arithmetic.memory import rank_memory
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.convert.available_memory import available_bytes
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
from qwen_megatron.planning.dry_run import batch_of
from qwen_megatron.planning.machine import Machine
from qwen_megatron.planning.step_time import OURS, StepTime, step_time
from qwen_megatron.platforms import Platform
from qwen_megatron.train.objective import NextTokenLoss
from qwen_megatron.train.step import train_step
from qwen_megatron.train.trainable import build_trainable

TIMEOUT_SECONDS = 120.0
# Edges of the cubes whose products are timed.
CPU_EDGES, GPU_EDGES = (32, 128, 384, 1024), (256, 1024, 2048, 4096, 8192)
# Of the tensor whose bytes are moved, and of the largest collective.
MOVED_BYTES, COLLECTIVE_BYTES = 1 << 27, 1 << 24
# A step that is nearly all host, and one that is nearly all kernels.
NARROW = ("model.hidden_size=64", "model.ffn_hidden_size=176", "model.num_layers=4", "model.vocab_size=64")
WIDE = ("model.hidden_size=512", "model.ffn_hidden_size=1408", "model.num_layers=2", "model.vocab_size=64")
STEP = ("model.preset=tiny", "model.num_attention_heads=4", "model.num_query_groups=4", "training.global_batch_size=2")


def calibrate(platform: Platform, base: Machine, seconds: float = 1.0) -> Machine:
    """Measures this machine.

    Args:
        platform: Of the machine.
        base: What is not measured: network, price, and on a GPU its memory and what is reserved of it.
        seconds: For each of some fifteen measurements.
    """
    platform.prepare()
    is_cpu = platform.name == "cpu"
    device = platform.device(0)
    # First, because a process' peak never falls: the others hold larger tensors.
    narrow, wide = step_config(platform, NARROW), step_config(platform, WIDE)
    narrow_seconds = step_seconds(narrow, platform, seconds)
    if is_cpu:
        reserved = platform.peak_memory_bytes() - max(stage.total for stage in rank_memory(narrow))
    else:
        reserved = base.reserved_bytes
    rates = product_rates(device, platform, CPU_EDGES if is_cpu else GPU_EDGES, seconds)
    peak = max(rates.values())
    link, latency = collective_rate() if is_cpu else (base.link_gb_per_second * base.link_efficiency, base.latency_us)
    measured = dataclasses.replace(
        base,
        memory_bytes=available_bytes() if is_cpu else base.memory_bytes,
        peak_tflops=peak / 1e12,
        memory_gb_per_second=moved_rate(device, platform, seconds) / 1e9,
        link_gb_per_second=link,
        ranks_per_node=max(2, len(os.sched_getaffinity(0))) if is_cpu else base.ranks_per_node,
        reserved_bytes=reserved,
        product_efficiency={float(flops): rate / peak for flops, rate in rates.items()},
        attention_efficiency=attention_rate(device, platform, seconds) / peak,
        memory_efficiency=1.0,
        link_efficiency=1.0,
        latency_us=latency,
        launch_us=0.0,
        kernels="cpu" if is_cpu else base.kernels,
        pass_factor=1.0,
    )
    return with_steps(measured, (narrow, narrow_seconds), (wide, step_seconds(wide, platform, seconds)))


def step_config(platform: Platform, shape: Sequence[str]) -> ResolvedConfig:
    """A training step of one process, in the precision that the platform trains in."""
    precision = "fp32" if platform.name == "cpu" else "bf16"
    chosen = (f"training.precision={precision}", f"parallel.platform={platform.name}", "training.seq_length=256")
    return resolve(load_config(None, [*STEP, *shape, *chosen]))


def with_steps(
    machine: Machine, narrow_step: tuple[ResolvedConfig, float], wide_step: tuple[ResolvedConfig, float]
) -> Machine:
    """The machine with the host's work and the bytes of torch's kernels, from two real steps and their seconds."""
    (narrow, narrow_seconds), (wide, wide_seconds) = narrow_step, wide_step
    # Two unknowns, each nearly alone in one of the steps: a few rounds settle both.
    for _ in range(20):
        rest = without(step_time(narrow, machine), "launches")
        launches = narrow.num_microbatches * narrow.model.num_layers * OURS.launches
        machine = dataclasses.replace(machine, launch_us=max(0.1, (narrow_seconds - rest) / launches * 1e6))
        planned = step_time(wide, machine)
        share = (wide_seconds - without(planned, "memory")) / planned.memory
        machine = dataclasses.replace(machine, pass_factor=max(0.2, machine.pass_factor * share))
    return machine


def without(planned: StepTime, part: str) -> float:
    """Seconds of the other parts."""
    return planned.total - float(getattr(planned, part))


def step_seconds(config: ResolvedConfig, platform: Platform, seconds: float) -> float:
    """The shortest of some training steps of one process."""
    device = start_process_group(platform, TIMEOUT_SECONDS)
    try:
        groups = build_groups(device=device, timeout_seconds=TIMEOUT_SECONDS)
        trainable = build_trainable(config, groups, platform)
        shape = BatchShape(micro_batch_size=config.training.micro_batch_size, seq_length=config.training.seq_length)

        def step() -> None:
            train_step(
                trainable,
                NextTokenLoss(),
                iter([batch_of(shape)] * config.num_microbatches),
                shape=shape,
                num_microbatches=config.num_microbatches,
                step=1,
                learning_rate=1e-5,
                clip_grad=1.0,
            )

        return shortest(step, platform, 2 * seconds)
    finally:
        destroy_groups()


def shortest(work: Callable[[], Any], platform: Platform, seconds: float) -> float:
    """Of as many repetitions as fit into the time, three at least; the first ones warm up."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 4 or time.perf_counter() < end:
        platform.synchronize()
        start = time.perf_counter()
        work()
        platform.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def dtype_of(device: torch.device) -> torch.dtype:
    """What is trained in: fp32 on the CPU, bf16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def product_rates(device: torch.device, platform: Platform, edges: tuple[int, ...], seconds: float) -> dict[int, float]:
    """Operations a second by the operations of a product."""
    rates = {}
    for edge in edges:
        one, other = (torch.randn(edge, edge, device=device, dtype=dtype_of(device)) for _ in range(2))
        flops = 2 * edge**3
        rates[flops] = flops / shortest(functools.partial(torch.mm, one, other), platform, seconds)
    return rates


def moved_rate(device: torch.device, platform: Platform, seconds: float) -> float:
    """Bytes a second read and written."""
    one, other = (torch.ones(MOVED_BYTES // 4, device=device) for _ in range(2))
    return 3 * MOVED_BYTES / shortest(lambda: one.add_(other), platform, seconds)


def attention_rate(device: torch.device, platform: Platform, seconds: float) -> float:
    """Operations a second of causal attention, forward and backward, half of the square counted."""
    length, heads, size = (512, 4, 64) if device.type == "cpu" else (4096, 16, 128)
    query, key, value = (
        torch.randn(1, heads, length, size, device=device, dtype=dtype_of(device), requires_grad=True) for _ in range(3)
    )

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()

    return 7 * heads * length * length * size / shortest(attend, platform, seconds)


def collective_rate() -> tuple[float, float]:
    """(10^9 bytes a second of one rank, microseconds without content) between two processes of this machine."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=time_collectives, args=(rank, folder)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        content: list[float] = json.loads(Path(folder, "times.json").read_text(encoding="utf-8"))
    large, small = content
    # Each of the two sends half of the tensor.
    return COLLECTIVE_BYTES / 2 / max(large - small, 1e-9) / 1e9, small * 1e6


def time_collectives(rank: int, folder: str) -> None:
    """One of two processes; the first one leaves the times of a large and of a small collective in the folder."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_SECONDS))
    times = []
    for size in (COLLECTIVE_BYTES, 8):
        half, whole = torch.zeros(size // 8), torch.zeros(size // 4)
        found = []
        for _ in range(8):
            dist.barrier()
            start = time.perf_counter()
            # What sequence parallelism and the distributed optimizer send; gloo's all-reduce is faster than the two.
            dist.all_gather_into_tensor(whole, half)
            dist.reduce_scatter_tensor(half, whole)
            found.append((time.perf_counter() - start) / 2)
        times.append(min(found))
    if rank == 0:
        Path(folder, "times.json").write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


def write_machine(machine: Machine, path: Path, base: str) -> None:
    """Writes a hardware file.

    Args:
        machine: Measured.
        path: Of the file.
        base: Name of the machine whose network and price it has.
    """
    values: Mapping[str, Any] = {
        field.name: getattr(machine, field.name) for field in dataclasses.fields(machine) if field.name != "name"
    }
    table = ", ".join(f"{flops:.3e}: {share:.4f}" for flops, share in sorted(machine.product_efficiency.items()))
    how = (
        f"# Measured {datetime.now(UTC):%Y-%m-%d} by `qwen-megatron plan --calibrate`; network and price are {base}'s."
    )
    lines = [how]
    lines += [
        f"{name}: {{{table}}}"
        if name == "product_efficiency"
        else f"{name}: {value:.6g}"
        if isinstance(value, float)
        else f"{name}: {value}"
        for name, value in values.items()
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
