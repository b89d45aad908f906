"""How often the host waits for a GPU in a training step, by torch's own count: python -m tests.gpu.count_waits.

In a process of its own: the shims of a platform stay in it.
"""

from __future__ import annotations

import collections
import json
import sys
import warnings
from collections.abc import Callable, Iterator

import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import resolve
from qwen_megatron.data.batch import Batch, make_batch
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
from qwen_megatron.platforms import get_platform
from qwen_megatron.train.objective import NextTokenLoss
from qwen_megatron.train.step import train_step
from qwen_megatron.train.trainable import build_trainable

SETTINGS = (
    "model.preset=tiny",
    "model.num_layers=2",
    "model.vocab_size=161",
    "training.precision=bf16",
    "training.seq_length=64",
    "training.micro_batch_size=2",
    "training.global_batch_size=8",
    "training.train_iters=100",
)


def waits_of_a_step(platform_name: str, *settings: str) -> dict[str, int]:
    """Where the host waited in the third step of four micro-batches, and how often; nothing on the CPU."""
    config = resolve(load_config(None, [*SETTINGS, f"parallel.platform={platform_name}", *settings]), 1)
    platform = get_platform(platform_name)
    platform.prepare()
    groups = build_groups(device=start_process_group(platform, 60), timeout_seconds=60)
    try:
        trainable = build_trainable(config, groups, platform)
        length, rows = config.training.seq_length, config.training.micro_batch_size
        drawn = torch.randint(161, (rows, length + 1), generator=torch.Generator().manual_seed(0))

        def batches() -> Iterator[Batch]:
            number = 0
            while True:
                ids = [SampleId(corpus=0, sample=number + row, epoch=0) for row in range(rows)]
                number += rows
                yield make_batch(list(drawn.numpy()), ids, length, 160, mask_documents=config.data.mask_documents)

        def step(number: int) -> None:
            train_step(
                trainable,
                NextTokenLoss(),
                batches(),
                shape=BatchShape(micro_batch_size=rows, seq_length=length),
                num_microbatches=config.num_microbatches,
                step=number,
                learning_rate=1e-3,
                clip_grad=1.0,
            )

        # Moments, kernels and pinned memory are made in the first two.
        step(1)
        step(2)
        return counted(step, groups.device)
    finally:
        destroy_groups()


def counted(step: Callable[[int], None], device: torch.device) -> dict[str, int]:
    """Warnings of torch about waiting in one more step, by file and line."""
    if device.type == "cpu":
        step(3)
        return {}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing CUDA operation" in str(one.message)]
    return dict(collections.Counter(places))


if __name__ == "__main__":
    print(json.dumps(waits_of_a_step(sys.argv[1], *sys.argv[2:])))
