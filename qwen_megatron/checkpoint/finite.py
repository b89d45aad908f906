"""Weights, masters and moments that are no numbers are neither saved nor loaded as if they were good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from qwen_megatron.checkpoint.agreement import failing_together
from qwen_megatron.checkpoint.sharded_state import saved_tensors
from qwen_megatron.errors import CheckpointError, NonFiniteError
from qwen_megatron.train.finite import all_finite
from qwen_megatron.train.trainable import Trainable

MOST_NAMED = 3


def check_before_save(tensors: Mapping[str, ShardedTensor], step: int, rank: int) -> None:
    """Looks at what this rank is about to write; collective, before anything is written.

    Loss and gradient may be finite while a moment is not, and with it the next weights.

    Args:
        tensors: As `sharded_state.saved_tensors` gives them.
        step: Of the run.
        rank: Of this process.
    Raises:
        NonFiniteError: on every rank, naming tensors and ranks. No checkpoint is touched; a restart goes on from the
            last one.
    """
    try:
        with failing_together():
            problem = in_words(non_finite(tensors))
            if problem:
                raise CheckpointError(f"rank {rank}: {problem}")
    except CheckpointError as error:
        raise NonFiniteError(
            f"step {step} is not saved: {error}. The checkpoints before it stay as they are; start again, which goes "
            "on from the newest of them"
        ) from error


def check_loaded(trainable: Trainable, source: Path, *, weights_only: bool) -> None:
    """Looks at what a checkpoint or a Hugging Face folder has filled a model with; collective.

    Args:
        trainable: Loaded.
        source: For the message.
        weights_only: Masters and moments did not come from there.
    Raises:
        CheckpointError: on every rank, naming tensors.
    """
    names = non_finite_weights(*trainable.models) if weights_only else non_finite(saved_tensors([trainable]))
    with failing_together():
        refuse(in_words(names), source, "checkpoint.allow_nonfinite=true")


def check_weights(model: torch.nn.Module, source: Path) -> None:
    """Looks at the weights of a bare model that was loaded in one process.

    Raises:
        CheckpointError: naming weights.
    """
    refuse(in_words(non_finite_weights(model)), source, "--allow-nonfinite")


def non_finite_weights(*models: torch.nn.Module) -> Iterator[str]:
    """Names of weights with a NaN or an infinity."""
    for model in models:
        for name, weight in model.named_parameters():
            if not all_finite(weight):
                yield name


def non_finite(tensors: Mapping[str, ShardedTensor]) -> Iterator[str]:
    """Names of tensors with a NaN or an infinity, each once."""
    seen = set()
    for tensor in tensors.values():
        if tensor.key not in seen and not all_finite(tensor.data):
            seen.add(tensor.key)
            yield tensor.key


def in_words(names: Iterator[str]) -> str:
    """`a, b and 2 more hold NaN or infinity`; empty if there are none."""
    found = list(names)
    if not found:
        return ""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"{', '.join(found[:MOST_NAMED])}{more} hold{'s' if len(found) == 1 else ''} NaN or infinity"


def refuse(problem: str, source: Path, permission: str) -> None:
    """Refuses a model with numbers that are not finite.

    Raises:
        CheckpointError: if there is a problem.
    """
    if problem:
        raise CheckpointError(
            f"{source}: {problem}; it is no good model. Name another one, or give {permission} to look into it"
        )
