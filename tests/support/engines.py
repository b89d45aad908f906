"""Small engines on the ranks of a job, or on one process without a job, and batches for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.data.batch import Batch, make_batch
from qwen_megatron.data.pretraining.dataset import SampleId
from qwen_megatron.parallel.groups import Groups, build_groups, leave, start_process_group
from qwen_megatron.platforms import get_platform
from qwen_megatron.train.engine import Engine, build_engine

TIMEOUT_SECONDS = 60.0

# Milliseconds a step.
TINY = (
    "model.preset=tiny",
    "model.vocab_size=161",
    "training.precision=fp32",
    "training.seed=1234",
    "training.seq_length=32",
    "training.micro_batch_size=2",
    "training.global_batch_size=8",
    "training.train_iters=100",
    "optimizer.lr=1e-2",
    "optimizer.lr_warmup_iters=0",
)


def tiny_config(*overrides: str) -> ResolvedConfig:
    """The configuration of a tiny run, resolved on as many ranks as this job has."""
    return resolve(load_config(None, [*TINY, *overrides]), int(os.environ.get("WORLD_SIZE", "1")))


@contextlib.contextmanager
def groups_of(
    tensor_size: int = 1, pipeline_size: int = 1, context_size: int = 1, num_virtual_stages: int | None = None
) -> Iterator[Groups]:
    """This rank's groups, for as long as the context is open."""
    platform = get_platform("cpu")
    platform.prepare()
    device = start_process_group(platform, TIMEOUT_SECONDS)
    groups = None
    try:
        groups = build_groups(
            tensor_model_parallel_size=tensor_size,
            pipeline_model_parallel_size=pipeline_size,
            virtual_pipeline_model_parallel_size=num_virtual_stages,
            context_parallel_size=context_size,
            device=device,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        yield groups
    finally:
        leave(groups)


@contextlib.contextmanager
def tiny_engine(*overrides: str) -> Iterator[Engine]:
    """This rank's engine of `tiny_config`."""
    config = tiny_config(*overrides)
    parallel = config.parallel
    with groups_of(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
        parallel.virtual_pipeline_model_parallel_size,
    ) as groups:
        yield build_engine(config, groups, get_platform("cpu"))


def random_batches(engine: Engine, vocab_size: int, seed: int = 0) -> Iterator[Batch]:
    """This rank's share of global batches of random tokens, the same in every layout."""
    generator = np.random.default_rng(seed)
    dp_rank, dp_size, rows = engine.groups.dp.rank(), engine.groups.dp.size(), engine.micro_batch_size
    number = 0
    while True:
        drawn = generator.integers(0, vocab_size, size=(dp_size * rows, engine.seq_length + 1))
        ids = [SampleId(corpus=0, sample=number + i, epoch=0) for i in range(dp_size * rows)]
        number += len(ids)
        mine = slice(dp_rank * rows, (dp_rank + 1) * rows)
        yield make_batch(list(drawn[mine]), ids[mine], engine.seq_length, vocab_size - 1)


def weights_of(engine: Engine) -> dict[str, torch.nn.Parameter]:
    """This rank's weights by name, those of the pieces of an interleaved pipeline numbered."""
    models = engine.models
    return {
        f"{i}.{name}" if len(models) > 1 else name: param
        for i, model in enumerate(models)
        for name, param in model.named_parameters()
    }


def parameter_bytes(engine: Engine) -> dict[str, bytes]:
    """Exact content of this rank's weights, fp32 masters and moments."""
    content = {f"weight {name}": raw(param) for name, param in weights_of(engine).items()}
    for i, group in enumerate(engine.optimizer.optimizer.param_groups):
        for j, param in enumerate(group["params"]):
            content[f"master {i}.{j}"] = raw(param)
            for name, moment in engine.optimizer.optimizer.state[param].items():
                content[f"{name} {i}.{j}"] = raw(moment)
    return content


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
