"""Loads a checkpoint into models of any layout, after every byte of it has been verified."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_megatron.checkpoint.choice import agree_on, choose_newest
from qwen_megatron.checkpoint.manifest import MANIFEST, list_checkpoints
from qwen_megatron.checkpoint.sharded_state import fill, loaded_tensors, sharded_weights
from qwen_megatron.checkpoint.state import (
    CheckpointState,
    check_continuable,
    check_heads,
    only_model,
    saved_model_config,
)
from qwen_megatron.checkpoint.storage import load_tensors
from qwen_megatron.errors import CheckpointError
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL, SCALAR
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.train.trainable import Trainable

log = logging.getLogger(__name__)

# In the state of a model, on its last stage.
HEAD_WEIGHT = "output_layer.weight"


def existing(path: Path) -> Path:
    """The path, if there is something.

    Raises:
        CheckpointError: if there is nothing.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; check the name")
    return path


def checkpoint_in(path: Path) -> Path:
    """A checkpoint's folder as it is; of a run's folder its newest checkpoint, which is told. Nothing is verified.

    Raises:
        CheckpointError: if there is no such path.
    """
    checkpoints = [] if (existing(path) / MANIFEST).exists() else list_checkpoints(path)
    if not checkpoints:
        # What it lacks is said by whoever reads it.
        return path
    log.warning("taking %s, the newest checkpoint of this run", checkpoints[0])
    return checkpoints[0]


def verify_checkpoint(folder: Path) -> None:
    """Checks presence, size and sha256 of all files; collective where a job is running, each rank reads its share.

    Raises:
        CheckpointError: on every rank, naming the file, what was expected and what was found.
    """
    agree_on(folder)


def find_newest(directory: Path) -> Path | None:
    """The newest checkpoint of a run that verifies, the same on all ranks; None if the run has none. Collective.

    Raises:
        CheckpointError: as `choose_newest`.
    """
    return choose_newest(directory)


def load_checkpoint(folder: Path, trainables: Mapping[str, Trainable]) -> CheckpointState:
    """Everything: weights, fp32 masters, moments. The layout may differ from the one that saved. Collective.

    Args:
        folder: A verified checkpoint.
        trainables: The models of the job by name; overwritten.
    Raises:
        CheckpointError: if the checkpoint does not hold these models, or one does not fit.
    """
    state = CheckpointState.read(folder)
    check_continuable(state, folder, {name: one.optimizer is not None for name, one in trainables.items()})
    check_heads(state, folder, {name: trainable.head for name, trainable in trainables.items()})
    for name, trainable in trainables.items():
        check_architecture(folder, trainable.models[0], name)
    # All models in one pass over the files.
    loaded = load_tensors(
        {name: loaded_tensors(trainable, state.prefix(name)) for name, trainable in trainables.items()}, folder
    )
    for name, trainable in trainables.items():
        for i, model in enumerate(trainable.models):
            fill(model, loaded[name][f"model{i}"], folder)
        if trainable.optimizer is not None:
            # Masters and moments were read in place.
            groups = continued_groups(state.models[name].optimizer, trainable)
            trainable.optimizer.load_state_dict({"optimizer": {"param_groups": groups}})
    return state


def continued_groups(saved: list[dict[str, Any]], trainable: Trainable) -> list[dict[str, Any]]:
    """The optimizer's parameter groups at the step of the saved ones.

    Everything else in a group follows from the configuration, and what is configured now is what counts: taken from the
    checkpoint, old betas would silently win over new ones.
    """
    groups = trainable.trained.state_dict()["optimizer"]["param_groups"]
    if len(saved) != len(groups):
        raise CheckpointError(
            f"the checkpoint has {len(saved)} groups of parameters, this model {len(groups)}; start from its weights "
            "alone with checkpoint.init_from"
        )
    return [{**group, "step": old["step"]} for group, old in zip(groups, saved, strict=True)]


def load_weights(folder: Path, trainable: Trainable, name: str | None = None) -> None:
    """Weights alone, for `checkpoint.init_from`: an optimizer starts anew from them. Collective.

    A scalar head stays as it is if the checkpoint holds a language model.

    Args:
        folder: A verified checkpoint.
        trainable: Overwritten.
        name: Of the model in the checkpoint; None for the only one.
    """
    for model in trainable.models:
        load_model(folder, model, name, may_lack_head=True)
    if trainable.optimizer is not None:
        # The fp32 masters are copies; without this the first update would bring the old weights back.
        trainable.optimizer.reload_model_params()


def load_model(folder: Path, qwen: QwenModel, name: str | None = None, *, may_lack_head: bool = False) -> None:
    """Weights into a bare model, converted to its dtype. Collective.

    Args:
        folder: A verified checkpoint.
        qwen: Overwritten.
        name: Of the model in the checkpoint; None for the only one.
        may_lack_head: A model with a scalar head takes the other weights of a language model.
    Raises:
        CheckpointError: if the checkpoint does not fit the model.
    """
    state = CheckpointState.read(folder)
    name = name or only_model(state, folder)
    saved = state.model(name, folder)
    lacks_head = may_lack_head and (saved.head, qwen.head) == (LANGUAGE_MODEL, SCALAR)
    if saved.head != qwen.head and not lacks_head:
        raise CheckpointError(f"{folder}: model {name!r} has a {saved.head} head, a {qwen.head} head is asked for")
    check_architecture(folder, qwen, name)
    weights = sharded_weights(qwen, state.prefix(name))
    own = {place: weights.pop(place).data for place in list(weights) if lacks_head and place == HEAD_WEIGHT}
    loaded: dict[str, Any] = load_tensors({"model": weights}, folder)
    fill(qwen, {**loaded["model"], **own}, folder)


def check_architecture(folder: Path, qwen: QwenModel, name: str) -> None:
    """Compares what tensor shapes do not tell.

    Megatron-Core cuts or fills a vocabulary of another size without a word, and the same matrix holds 8 heads of 64
    or 4 of 128.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    saved = saved_model_config(folder, name)
    actual = {
        "vocab_size": qwen.num_tokens_in_vocabulary,
        "num_attention_heads": qwen.config.num_attention_heads,
        "num_query_groups": qwen.config.num_query_groups,
        "kv_channels": qwen.config.kv_channels,
    }
    if qwen.head == LANGUAGE_MODEL:
        actual["tie_word_embeddings"] = qwen.share_embeddings_and_output_weights
    different = [
        f"model.{key}={value}, but the checkpoint has {getattr(saved, key)}"
        for key, value in actual.items()
        if value != getattr(saved, key)
    ]
    if different:
        raise CheckpointError(f"{folder}: does not fit this model: {'; '.join(different)}; use the checkpoint's values")
