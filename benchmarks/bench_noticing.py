"""What it costs to notice: step guard, weight consistency, straggler report and watch, in shares of a step.

    torchrun --nproc-per-node 2 benchmarks/bench_noticing.py

A model of the demo's size on random tokens, one replica a process. Each part is timed alone, as often as a run calls
it by default; medians of rank 0.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.data.batch import Batch, make_batch
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.jobs.watchdog import BEAT_SECONDS, Watchdog
from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
from qwen_megatron.parallel.rendezvous import join_job
from qwen_megatron.platforms import get_platform
from qwen_megatron.train.hooks.straggler import StragglerHook
from qwen_megatron.train.hooks.weight_consistency import check_weight_consistency, parameter_hash
from qwen_megatron.train.objective import NextTokenLoss
from qwen_megatron.train.step import train_step
from qwen_megatron.train.step_guard import FEWEST, Measured, StepGuard, agreed
from qwen_megatron.train.trainable import build_trainable

SETTINGS = [
    "model.preset=tiny",
    "training.precision=bf16",
    "training.train_iters=100",
    "training.seq_length=256",
    "training.micro_batch_size=1",
    "training.global_batch_size=8",
]


def median_seconds(work: Callable[[], object], times: int) -> float:
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    platform = get_platform("cpu")
    platform.prepare()
    torch.set_num_threads(1)
    member = join_job(platform, 60)
    device = start_process_group(platform, 60, member)
    config = resolve(load_config(None, SETTINGS), member.world_size)
    groups = build_groups(device=device, timeout_seconds=60)
    trainable = build_trainable(config, groups, platform)
    shape = BatchShape(micro_batch_size=1, seq_length=config.training.seq_length)
    samples = np.random.default_rng(groups.rank)

    def batches() -> Iterator[Batch]:
        while True:
            row = samples.integers(0, config.model.vocab_size, size=config.training.seq_length + 1)
            yield make_batch([row], [SampleId(corpus=0, sample=0, epoch=0)], config.training.seq_length, 0)

    endless = batches()

    def one_step() -> object:
        return train_step(
            trainable,
            NextTokenLoss(),
            endless,
            shape=shape,
            num_microbatches=config.num_microbatches,
            step=1,
            learning_rate=1e-4,
            clip_grad=1.0,
        )

    step = median_seconds(one_step, 5)

    guard = StepGuard(spike_sigmas=config.training.spike_sigmas)
    guard.recent.extend([12.0] * FEWEST)
    measured = Measured(loss=12.0, grad_norm=1.0, own_loss=12.0, is_finite=True, is_calm=True)
    sound = torch.ones(2, dtype=torch.bool)

    def judge() -> None:
        agreed(trainable, sound)
        guard.decide(trainable, 1, lambda _: measured)

    run: Any = SimpleNamespace(groups=groups, timers=trainable.timers, is_main=groups.rank == 0)
    record: Any = SimpleNamespace(own_seconds=1.0, step_seconds=1.0, step=config.logging.straggler_interval)
    straggler = StragglerHook(config.logging.straggler_interval)
    watch = Watchdog(member.store, member.rank, member.world_size, config.parallel, print)
    checks = config.logging.replica_check_interval
    # Name, seconds of one, steps between two.
    parts = [
        ("step guard", median_seconds(judge, 50), 1.0),
        (
            "weight consistency",
            median_seconds(lambda: check_weight_consistency(trainable, 1), 5),
            checks,
        ),
        (
            "hash of weights",
            median_seconds(lambda: parameter_hash([trainable]), 5),
            checks,
        ),
        ("straggler report", median_seconds(lambda: straggler.on_step(run, record), 50), straggler.interval),
        ("watch", median_seconds(lambda: watch.beat("forward", watch.position()), 50), BEAT_SECONDS / step),
    ]
    if groups.rank == 0:
        print(f"a step: {step:.3f} s ({member.world_size} processes, {config.num_parameters:,} parameters)")
        for name, seconds, steps in parts:
            print(
                f"{name:17} {seconds * 1e3:8.2f} ms, every {steps:6.1f} steps: {seconds / steps / step:.4%} of a step"
            )
        print(f"{'together':17} {sum(seconds / steps for _, seconds, steps in parts) / step:.4%} of a step")
    destroy_groups()


if __name__ == "__main__":
    main()
