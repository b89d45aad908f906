"""Small models on the ranks of a job, or on one process without a job, batches for them, and single steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.data.batch import Batch, make_batch
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.loss import summed_loss
from qwen_megatron.parallel.groups import Groups, build_groups, destroy_groups, start_process_group
from qwen_megatron.platforms import get_platform
from qwen_megatron.train.objective import NextTokenLoss, Objective, Sums
from qwen_megatron.train.step import StepResult, evaluate, forward_backward, means, train_step
from qwen_megatron.train.step_guard import StepGuard
from qwen_megatron.train.trainable import Trainable, build_trainable

TIMEOUT_SECONDS = 60.0

# Of token losses and their batch: scalar sum and count.
LossFunction = Callable[[torch.Tensor, Batch], tuple[torch.Tensor, torch.Tensor]]

# Milliseconds a step.
TINY = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
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
        destroy_groups()


@dataclass(frozen=True, kw_only=True)
class TinyTrainable(Trainable):
    """A trainable that knows the batches of its configuration.

    Attributes:
        shape: Of its micro-batches.
        num_microbatches: Of a step on every rank.
        mask_documents: Whether its batches name documents.
    """

    shape: BatchShape
    num_microbatches: int
    mask_documents: bool


def tiny_built(config: ResolvedConfig, groups: Groups, **options: Any) -> TinyTrainable:
    """A trainable of a configuration; options as for `build_trainable`."""
    training = config.training
    return TinyTrainable(
        **vars(build_trainable(config, groups, get_platform("cpu"), **options)),
        shape=BatchShape(micro_batch_size=training.micro_batch_size, seq_length=training.seq_length),
        num_microbatches=config.num_microbatches,
        mask_documents=config.data.mask_documents,
    )


def groups_for(config: ResolvedConfig) -> contextlib.AbstractContextManager[Groups]:
    """This rank's groups of the configured layout."""
    parallel = config.parallel
    return groups_of(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
        parallel.virtual_pipeline_model_parallel_size,
    )


@contextlib.contextmanager
def tiny_trainable(*overrides: str) -> Iterator[TinyTrainable]:
    """This rank's trainable of `tiny_config`."""
    config = tiny_config(*overrides)
    with groups_for(config) as groups:
        yield tiny_built(config, groups)


def next_token(losses_bs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The usual loss as a function."""
    return summed_loss(losses_bs, batch.loss_mask_bs)


class OwnLoss(Objective):
    """A function of the token losses, about which nothing is promised."""

    def __init__(self, loss: LossFunction = next_token):
        self.loss = loss

    def request(self, batch: Batch) -> HeadRequest:
        return HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=batch.labels_bs)

    def measure(self, output: torch.Tensor, batch: Batch) -> Sums:
        total, count = self.loss(output, batch)
        return Sums(total=total, count=count)


def take_step(
    trainable: TinyTrainable,
    batches: Iterator[Batch],
    *,
    step: int = 1,
    learning_rate: float = 1e-3,
    clip_grad: float = 1.0,
    objective: Objective | None = None,
    guard: StepGuard | None = None,
) -> StepResult:
    """One step on a step's worth of the batches."""
    return train_step(
        trainable,
        objective or NextTokenLoss(),
        batches,
        shape=trainable.shape,
        num_microbatches=trainable.num_microbatches,
        step=step,
        learning_rate=learning_rate,
        clip_grad=clip_grad,
        guard=guard,
    )


def leave_gradient(
    trainable: TinyTrainable,
    batches: Iterator[Batch],
    *,
    objective: Objective | None = None,
    num_microbatches: int | None = None,
) -> float:
    """Mean loss of the micro-batches, a step's worth by default; the gradient stays in its buffers."""
    objective = objective or NextTokenLoss()
    count = num_microbatches or trainable.num_microbatches
    with trainable.timed():
        outputs = forward_backward(
            trainable,
            objective,
            batches,
            shape=trainable.shape,
            num_microbatches=count,
            forward_only=False,
            step=0,
        )
        return means(outputs, objective, trainable.groups)[0]


def held_out_loss(trainable: TinyTrainable, batches: Iterator[Batch], num_microbatches: int) -> float:
    """Mean next-token loss of micro-batches in evaluation mode."""
    return evaluate(trainable, NextTokenLoss(), batches, shape=trainable.shape, num_microbatches=num_microbatches)[0]


def random_batches(trainable: TinyTrainable, vocab_size: int, seed: int = 0) -> Iterator[Batch]:
    """This rank's share of global batches of random tokens, the same in every layout."""
    generator = np.random.default_rng(seed)
    dp_rank, dp_size, rows = trainable.groups.dp.rank(), trainable.groups.dp.size(), trainable.shape.micro_batch_size
    number = 0
    while True:
        drawn = generator.integers(0, vocab_size, size=(dp_size * rows, trainable.shape.seq_length + 1))
        ids = [SampleId(corpus=0, sample=number + i, epoch=0) for i in range(dp_size * rows)]
        number += len(ids)
        mine = slice(dp_rank * rows, (dp_rank + 1) * rows)
        yield make_batch(
            list(drawn[mine]),
            ids[mine],
            trainable.shape.seq_length,
            vocab_size - 1,
            mask_documents=trainable.mask_documents,
        )


def weights_of(trainable: Trainable) -> dict[str, torch.nn.Parameter]:
    """This rank's weights by name, those of the pieces of an interleaved pipeline numbered."""
    models = trainable.models
    return {
        f"{i}.{name}" if len(models) > 1 else name: param
        for i, model in enumerate(models)
        for name, param in model.named_parameters()
    }


def parameter_bytes(trainable: Trainable) -> dict[str, bytes]:
    """Exact content of this rank's weights, fp32 masters and moments."""
    content = {f"weight {name}": raw(param) for name, param in weights_of(trainable).items()}
    for i, group in enumerate(trainable.trained.optimizer.param_groups):
        for j, param in enumerate(group["params"]):
            content[f"master {i}.{j}"] = raw(param)
            for name, moment in trainable.trained.optimizer.state[param].items():
                content[f"{name} {i}.{j}"] = raw(moment)
    return content


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
