"""Everything small in a checkpoint, in one JSON file: counters, models, configuration, data, environment."""

from __future__ import annotations

import dataclasses
import json
import platform as python_platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qwen_megatron.config.model import ModelConfig
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.serialize import from_dict, to_dict
from qwen_megatron.errors import CheckpointError, ConfigError
from qwen_megatron.model.heads import HEADS, LANGUAGE_MODEL
from qwen_megatron.train.run import Run
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.trainable import MAIN, Trainable

STATE = "state.json"
# Version 2: models have names. Version 1 is still read.
VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What is small of one model.

    Attributes:
        config: Section `model`: its architecture.
        head: `language_model` or `scalar`.
        optimizer: Parameter groups of the optimizer without parameters; empty where there are weights only.
    """

    config: dict[str, Any]
    head: str = LANGUAGE_MODEL
    optimizer: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """Everything that is not a tensor.

    Attributes:
        train_state: Counters.
        models: The models by name.
        config: The resolved configuration, by section.
        data: Fingerprint, tokenizer and consumed samples of each source of samples, by name.
        job: What else the job needs to go on.
        environment: Versions, commit and threads: the terms on which going on is bitwise equal.
        version: Of the file; in version 1 the only model has no name in the keys of tensors.
    """

    train_state: TrainState
    models: dict[str, ModelState]
    config: dict[str, Any]
    data: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    job: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> CheckpointState:
        """Reads `state.json` of a checkpoint.

        Raises:
            CheckpointError: if it is missing or garbled.
        """
        path = folder / STATE
        try:
            content = json.loads(path.read_bytes())
            version = content.setdefault("version", 1)
            if version not in (1, VERSION):
                raise CheckpointError(
                    f"{path}: is of version {version}, this program reads 1 and {VERSION}; use the one that wrote it"
                )
            if version == 1:
                content["models"] = {
                    MAIN: {"config": content["config"]["model"], "optimizer": content.pop("optimizer")}
                }
            models = {str(name): ModelState(**model) for name, model in content["models"].items()}
            return cls(**{**content, "train_state": TrainState(**content["train_state"]), "models": models})
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: missing; the folder is not a checkpoint of qwen-megatron") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: garbled ({error!r}); name another checkpoint") from error

    def model(self, name: str, folder: Path) -> ModelState:
        """One of the models.

        Raises:
            CheckpointError: if it is not there, naming those that are.
        """
        if name not in self.models:
            raise CheckpointError(f"{folder}: holds no model {name!r}; it has {', '.join(sorted(self.models))}")
        found = self.models[name]
        if found.head not in HEADS:
            raise CheckpointError(f"{folder / STATE}: head {found.head!r} of model {name!r} must be one of {HEADS}")
        return found

    def prefix(self, name: str) -> str:
        """What stands before the keys of a model's tensors."""
        return "" if self.version == 1 else f"{name}."


def only_model(state: CheckpointState, folder: Path) -> str:
    """Name of the model that is meant where nobody says which: `model`, or the only one.

    Raises:
        CheckpointError: if there are several, none of them so called.
    """
    if MAIN in state.models:
        return MAIN
    if len(state.models) != 1:
        raise CheckpointError(f"{folder}: holds several models ({', '.join(sorted(state.models))}); name one of them")
    return next(iter(state.models))


def saved_model_config(folder: Path, name: str | None = None) -> ModelConfig:
    """The architecture of a model in a checkpoint.

    Args:
        folder: The checkpoint.
        name: Of the model; None for the only one.
    Raises:
        CheckpointError: if its `state.json` is missing or does not say.
    """
    state = CheckpointState.read(folder)
    name = name or only_model(state, folder)
    try:
        return from_dict(ModelConfig, state.model(name, folder).config, "model")
    except ConfigError as error:
        raise CheckpointError(f"{folder / STATE}: {error}") from error


def checkpoint_state(run: Run) -> CheckpointState:
    """The small state of a run, as it stands."""
    return CheckpointState(
        train_state=run.state,
        models={name: model_state(trainable) for name, trainable in run.trainables.items()},
        config=config_sections(run.job.config),
        data=run.job.sources(run.state),
        job=run.job.state_dict(),
        environment=environment(),
    )


def model_state(trainable: Trainable) -> ModelState:
    """The small state of a model, as it stands."""
    optimizer = trainable.optimizer
    return ModelState(
        config=to_dict(trainable.model),
        head=trainable.head,
        optimizer=[] if optimizer is None else optimizer.state_dict()["optimizer"]["param_groups"],
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
