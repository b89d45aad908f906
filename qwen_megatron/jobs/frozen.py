"""Models that a job asks and does not train: built, filled, and known by their content."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from qwen_megatron.checkpoint.manifest import MANIFEST
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.hf_paths import is_hf_folder
from qwen_megatron.errors import CheckpointError
from qwen_megatron.jobs.architecture import read_source
from qwen_megatron.jobs.resume import start_from_weights
from qwen_megatron.model.head_kinds import SCALAR
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.parallel.objects import broadcast, of_type
from qwen_megatron.platforms import Platform
from qwen_megatron.train.step_timers import StepTimers
from qwen_megatron.train.trainable import Trainable, build_trainable


def architecture_of(source: Path, config: ResolvedConfig) -> ModelConfig:
    """The architecture of a model that comes from a checkpoint or folder, on this run's kernels and without dropout.

    Raises:
        CheckpointError: if it is neither.
    """
    return dataclasses.replace(
        read_source(source).model,
        implementation=config.model.implementation,
        loss_implementation=config.model.loss_implementation,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )


def frozen_model(
    config: ResolvedConfig,
    groups: Groups,
    platform: Platform,
    source: Path,
    *,
    name: str,
    head: str,
    timers: StepTimers,
) -> Trainable:
    """A model without an optimizer, with the weights of a source; collective.

    Raises:
        CheckpointError: if the source is not whole or has another head.
    """
    if head == SCALAR and read_source(source).head != SCALAR:
        raise CheckpointError(f"{source}: has no scalar head; train a reward model with qwen-megatron reward")
    model = architecture_of(source, config)
    trainable = build_trainable(
        config, groups, platform, name=name, head=head, model=model, is_trained=False, timers=timers
    )
    start_from_weights(source, trainable, allow_nonfinite=config.checkpoint.allow_nonfinite)
    return trainable


def content_of(source: Path) -> str:
    """A hash that two sources share if their weights are the same; told by rank 0 to all.

    Of a checkpoint that of its manifest, which holds those of all files; of a Hugging Face folder that of its small
    JSON files and of the names and sizes of the others, which need not be read for it.
    """
    return str(broadcast(content_hash(source), of_type(str)))


def content_hash(source: Path) -> str:
    """`content_of` on this process."""
    if not is_hf_folder(source):
        return f"manifest-sha256-{hashlib.sha256((source / MANIFEST).read_bytes()).hexdigest()}"
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".safetensors"):
            told = path.read_bytes() if path.suffix == ".json" else str(path.stat().st_size).encode()
            digest.update(f"{path.name} {len(told)} ".encode() + told)
    return f"folder-sha256-{digest.hexdigest()}"


def check_same_content(key: str, saved: object, now: str) -> None:
    """Refuses another frozen model than the run was trained beside.

    Raises:
        CheckpointError: naming the setting.
    """
    if saved != now:
        raise CheckpointError(
            f"{key}: holds other weights ({now[-12:]}) than the model this run was trained beside "
            f"({str(saved)[-12:]}); "
            "name that one, or start anew with checkpoint.load=none and another checkpoint.directory"
        )
