"""Loads a checkpoint into an engine of any layout, after every byte of it has been verified."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from qwen_megatron.checkpoint.agreement import failing_together
from qwen_megatron.checkpoint.contents import (
    STATE,
    SmallState,
    loaded_tensors,
    saved_model_config,
    sharded_weights,
)
from qwen_megatron.checkpoint.manifest import LATEST, list_checkpoints, read_latest, read_manifest, verify_files
from qwen_megatron.checkpoint.storage import METADATA_JSON, check_format, load_tensors
from qwen_megatron.errors import CheckpointError
from qwen_megatron.model.builder import QwenModel
from qwen_megatron.train.engine import Engine

log = logging.getLogger(__name__)


# Read while a checkpoint is loaded; not verified if not listed.
NEEDED = (STATE, METADATA_JSON, ".metadata")


def verify_checkpoint(folder: Path) -> None:
    """Checks presence, size and sha256 of all files; collective where a job is running, each rank reads its share.

    Raises:
        CheckpointError: on every rank, naming the file, what was expected and what was found.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with failing_together():
        files = read_manifest(folder)
        for name in NEEDED:
            if name not in files:
                raise CheckpointError(f"{folder}: its manifest does not list {name}; the checkpoint cannot be trusted")
        # Small, and every rank will read it: odd content is damage like any other, to be passed over.
        SmallState.read(folder)
        check_format(folder)
        verify_files(folder, files, sorted(files)[rank::world])


def find_newest(directory: Path) -> Path | None:
    """The newest checkpoint of a run that verifies; None if the run has none at all. Collective.

    Damaged ones are passed over with a warning.

    Raises:
        CheckpointError: if there are checkpoints and none is whole, or all have gone that were here: starting from
            scratch would lose the run silently.
    """
    candidates = list_checkpoints(directory)
    latest = read_latest(directory)
    if latest is not None and not candidates:
        raise CheckpointError(
            f"{directory}: `latest` names {latest!r}, but there is no checkpoint here any more; put it back, or remove "
            f"{directory / LATEST} to start from nothing"
        )
    if latest is not None and latest not in {path.name for path in candidates}:
        log.warning(
            "%s: names %r, which is no checkpoint here; looking at the folders instead", directory / LATEST, latest
        )
    problems = []
    for folder in candidates:
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            log.warning("passing over a damaged checkpoint: %s", error)
            problems.append(str(error))
        else:
            return folder
    if problems:
        raise CheckpointError(
            f"{directory}: none of its {len(candidates)} checkpoints is whole:\n  " + "\n  ".join(problems) + "\n"
            "Repair one, or start over with checkpoint.load=none and another checkpoint.directory"
        )
    return None


def load_checkpoint(folder: Path, engine: Engine) -> SmallState:
    """Everything: weights, fp32 masters, moments. The layout may differ from the one that saved. Collective.

    Args:
        folder: A verified checkpoint.
        engine: Overwritten.
    Raises:
        CheckpointError: if the checkpoint does not fit the model.
    """
    small = SmallState.read(folder)
    if not small.optimizer:
        raise CheckpointError(
            f"{folder}: holds weights only, a run cannot go on from it; start with checkpoint.init_from={folder}"
        )
    check_architecture(folder, engine.models[0])
    loaded = load_tensors(loaded_tensors(engine), folder)
    for i, model in enumerate(engine.models):
        model.load_state_dict(loaded[f"model{i}"])
    # Masters and moments were read in place.
    engine.optimizer.load_state_dict({"optimizer": {"param_groups": continued_groups(small.optimizer, engine)}})
    return small


def continued_groups(saved: list[dict[str, Any]], engine: Engine) -> list[dict[str, Any]]:
    """The engine's parameter groups at the step of the saved ones.

    Everything else in a group follows from the configuration, and what is configured now is what counts: taken from the
    checkpoint, old betas would silently win over new ones.
    """
    groups = engine.optimizer.state_dict()["optimizer"]["param_groups"]
    if len(saved) != len(groups):
        raise CheckpointError(
            f"the checkpoint has {len(saved)} groups of parameters, this model {len(groups)}; start from its weights "
            "alone with checkpoint.init_from"
        )
    return [{**group, "step": old["step"]} for group, old in zip(groups, saved, strict=True)]


def load_weights(folder: Path, engine: Engine) -> None:
    """Weights alone, for `checkpoint.init_from`: the optimizer starts anew from them. Collective."""
    for model in engine.models:
        load_model(folder, model)
    # The fp32 masters are copies; without this the first update would bring the old weights back.
    engine.optimizer.reload_model_params()


def load_model(folder: Path, qwen: QwenModel) -> None:
    """Weights into a bare model, converted to its dtype. Collective.

    Raises:
        CheckpointError: if the checkpoint does not fit the model.
    """
    check_architecture(folder, qwen)
    loaded: dict[str, Any] = load_tensors({"model": sharded_weights(qwen)}, folder)
    qwen.load_state_dict(loaded["model"])


def check_architecture(folder: Path, qwen: QwenModel) -> None:
    """Compares what tensor shapes do not tell.

    Megatron-Core cuts or fills a vocabulary of another size without a word, and the same matrix holds 8 heads of 64
    or 4 of 128.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    saved = saved_model_config(folder)
    actual = {
        "vocab_size": qwen.num_tokens_in_vocabulary,
        "num_attention_heads": qwen.config.num_attention_heads,
        "num_query_groups": qwen.config.num_query_groups,
        "kv_channels": qwen.config.kv_channels,
        "tie_word_embeddings": qwen.share_embeddings_and_output_weights,
    }
    different = [
        f"model.{name}={value}, but the checkpoint has {getattr(saved, name)}"
        for name, value in actual.items()
        if value != getattr(saved, name)
    ]
    if different:
        raise CheckpointError(f"{folder}: does not fit this model: {'; '.join(different)}; use the checkpoint's values")
