"""What a checkpoint holds: sharded tensors for Megatron-Core's format, and one JSON file for everything small."""

from __future__ import annotations

import dataclasses
import json
import platform as python_platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values
from megatron.core.dist_checkpointing.mapping import ShardedObject

from data_tools.small_json import MissingFileError, SmallFileError, build, is_count, read_object
from qwen_megatron.checkpoint.pieces import owned_tensors
from qwen_megatron.config.model import ModelConfig
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.serialize import from_dict, to_dict
from qwen_megatron.errors import CheckpointError, ConfigError
from qwen_megatron.model.builder import QwenModel
from qwen_megatron.train.engine import Engine
from qwen_megatron.train.run import Run
from qwen_megatron.train.state import TrainState

STATE = "state.json"
MOMENTS = "optimizer.state.exp_avg"


@dataclass(frozen=True, kw_only=True)
class SmallState:
    """Everything that is not a tensor.

    Attributes:
        train_state: Counters.
        optimizer: Parameter groups of the optimizer without parameters.
        config: The resolved configuration, by section.
        data: Fingerprint, tokenizer and consumed samples of each corpus, by prefix.
        environment: Versions, commit and threads: the terms on which going on is bitwise equal.
    """

    train_state: TrainState
    optimizer: list[dict[str, Any]]
    config: dict[str, dict[str, Any]]
    data: dict[str, dict[str, Any]]
    environment: dict[str, Any]

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> SmallState:
        """Reads `state.json` of a checkpoint.

        Raises:
            CheckpointError: if it is missing or garbled, or a value is not of the kind that is used later.
        """
        path = folder / STATE
        try:
            content = read_object(path)
            counters = build(TrainState, content.get("train_state"), f"{path}: train_state")
            small = build(cls, {**content, "train_state": counters}, str(path))
            check_values(small, str(path))
        except MissingFileError as error:
            raise CheckpointError(f"{path}: missing; the folder is not a checkpoint of qwen-megatron") from error
        except SmallFileError as error:
            raise CheckpointError(f"{error}; the state is garbled, name another checkpoint") from error
        return small


def check_values(small: SmallState, where: str) -> None:
    """Looks below the first level: counters, and what is asked of each group, section and corpus.

    Raises:
        SmallFileError: naming the value.
    """
    checks = {f"train_state.{name}": is_count(value) for name, value in dataclasses.asdict(small.train_state).items()}
    checks |= {f"optimizer[{i}].step": is_count(group.get("step")) for i, group in enumerate(small.optimizer)}
    for prefix, entry in small.data.items():
        checks[f"data.{prefix}.fingerprint"] = isinstance(entry.get("fingerprint"), str)
        checks[f"data.{prefix}.tokenizer"] = isinstance(entry.get("tokenizer"), str | None)
        checks[f"data.{prefix}.consumed_samples"] = is_count(entry.get("consumed_samples"))
    checks["config.data.blend"] = not small.data or "blend" in small.config.get("data", {})
    for name, is_good in checks.items():
        if not is_good:
            raise SmallFileError(f"{where}: {name} is missing or not what a save writes there")


def saved_model_config(folder: Path) -> ModelConfig:
    """The architecture a checkpoint was trained with.

    Raises:
        CheckpointError: if its `state.json` is missing or does not say.
    """
    try:
        return from_dict(ModelConfig, SmallState.read(folder).config.get("model"), "model")
    except ConfigError as error:
        raise CheckpointError(f"{folder / STATE}: {error}") from error


def small_state(run: Run) -> SmallState:
    """The small state of a run, as it stands."""
    fingerprints, tokenizers = run.dataset.fingerprints(), run.dataset.tokenizers()
    consumed = run.dataset.consumed(run.state.consumed_samples)
    return SmallState(
        train_state=run.state,
        optimizer=run.engine.optimizer.state_dict()["optimizer"]["param_groups"],
        config=config_sections(run.config),
        data={
            prefix: {
                "fingerprint": fingerprints[prefix],
                "tokenizer": tokenizers[prefix],
                "consumed_samples": consumed[prefix],
            }
            for prefix in consumed
        },
        environment=environment(),
    )


def config_sections(config: ResolvedConfig) -> dict[str, Any]:
    """The resolved configuration as plain data."""
    names = ("model", "parallel", "optimizer", "training", "data", "checkpoint", "logging")
    return {name: to_dict(getattr(config, name)) for name in names}


def environment() -> dict[str, Any]:
    """Versions and settings that bits depend on."""
    packages = ("torch", "megatron-core", "numpy", "qwen-megatron", "transformer-engine")
    return {
        "python": python_platform.python_version(),
        "packages": {name: version for name in packages if (version := installed_version(name))},
        "commit": source_commit(),
        "threads": torch.get_num_threads(),
        "machine": python_platform.machine(),
    }


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """Commit of the source tree this runs from, with "-dirty" if files differ; None outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def saved_tensors(engine: Engine) -> dict[str, Any]:
    """What this rank writes: its own part of the weights, of their fp32 masters and of the moments."""
    return owned_tensors(engine.optimizer, all_weights(engine), weights=True)


def loaded_tensors(engine: Engine) -> dict[str, Any]:
    """What this rank reads: all weights of its layers, and its own part of the optimizer's state, in place."""
    # Allocates the moments where no step has been taken yet.
    engine.optimizer.load_state_dict(engine.optimizer.state_dict())
    weights = all_weights(engine)
    owned = owned_tensors(engine.optimizer, weights, weights=False)
    for tensor in owned.values():
        if tensor.key.startswith(MOMENTS):
            # Allocated without content; rows that pad the vocabulary for this layout are in no checkpoint.
            tensor.data.zero_()
    return {**weights, "optimizer": owned}


def all_weights(engine: Engine) -> dict[str, Any]:
    """The sharded weights of each piece of the model on this rank."""
    return {f"model{i}": sharded_weights(model) for i, model in enumerate(engine.models)}


def sharded_weights(qwen: QwenModel) -> dict[str, Any]:
    """The sharded weights of a bare model."""
    # Linear layers add pickled scaling state of Transformer Engine; without fp8 it is empty.
    _, weights = extract_matching_values(qwen.sharded_state_dict(), lambda value: isinstance(value, ShardedObject))
    return weights
