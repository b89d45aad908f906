"""Everything small in a checkpoint, in one JSON file: counters, models, configuration, data, environment.

It is read without torch: before a start imports anything, it is compared with what the checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.io.small_json import MissingFileError, SmallFileError, build, is_count, read_object, shown
from data_tools.tokenizer.qwen import is_of_qwen
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.serialize import from_dict, to_dict
from qwen_megatron.errors import CheckpointError, ConfigError
from qwen_megatron.model.head_kinds import HEADS, LANGUAGE_MODEL
from qwen_megatron.train.names import MAIN, NAME
from qwen_megatron.train.state import TrainState

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
        data: Fingerprint, tokenizer, id that ends documents and consumed samples of each source of samples, by name.
        job: What else the job needs to go on.
        environment: Versions, commit and threads: the terms on which going on is bitwise equal.
        version: Of the file; in version 1 the only model has no name in the keys of tensors.
    """

    train_state: TrainState
    models: dict[str, ModelState]
    config: dict[str, dict[str, Any]]
    data: dict[str, dict[str, Any]]
    environment: dict[str, Any]
    job: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> bytes:
        """The bytes of `state.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> CheckpointState:
        """Reads `state.json` of a checkpoint.

        Raises:
            CheckpointError: if it is missing or garbled, or a value is not of the kind that is used later.
        """
        path = folder / STATE
        try:
            content = of_this_version(read_object(path), str(path))
            counters = build(TrainState, content.get("train_state"), f"{path}: train_state")
            models = content.get("models")
            if not isinstance(models, dict) or not models:
                raise SmallFileError(f"{path}: models must be an object that names at least one model")
            built = {name: build(ModelState, model, f"{path}: models.{name}") for name, model in models.items()}
            state = build(cls, {**content, "train_state": counters, "models": built}, str(path))
            check_values(state, str(path))
        except MissingFileError as error:
            raise CheckpointError(f"{path}: missing; the folder is not a checkpoint of qwen-megatron") from error
        except SmallFileError as error:
            raise CheckpointError(f"{error}; the state is garbled, name another checkpoint") from error
        return state

    def model(self, name: str, folder: Path) -> ModelState:
        """One of the models.

        Raises:
            CheckpointError: if it is not there, naming those that are.
        """
        if name not in self.models:
            raise CheckpointError(f"{folder}: holds no model {name!r}; it has {', '.join(sorted(self.models))}")
        return self.models[name]

    @property
    def has_qwen_tokens(self) -> bool:
        """Whether what was trained on are Qwen's tokens, as far as the checkpoint tells."""
        return have_qwen_tokens(self.data)

    def prefix(self, name: str) -> str:
        """What stands before the keys of a model's tensors."""
        return "" if self.version == 1 else f"{name}."


def have_qwen_tokens(sources: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether samples are of Qwen's tokens, as far as their sources tell; see `data.protocol.Dataset.sources`."""
    return all(is_of_qwen(source["tokenizer"], source.get("end_of_document")) for source in sources.values())


def of_this_version(content: dict[str, Any], where: str) -> dict[str, Any]:
    """The content of a state of any version that is read, in the form of the newest.

    Raises:
        SmallFileError: if it is of another version.
    """
    version = content.get("version", 1)
    if version == VERSION:
        return content
    if version != 1:
        raise SmallFileError(f"{where}: is of version {shown(version)}, this program reads 1 and {VERSION}")
    config = content.get("config")
    model = {"config": config.get("model") if isinstance(config, dict) else None, "optimizer": content.get("optimizer")}
    return {
        **{key: value for key, value in content.items() if key != "optimizer"},
        "version": 1,
        "models": {MAIN: model},
    }


def check_values(state: CheckpointState, where: str) -> None:
    """Looks below the first level: counters, and what is asked of each model, group, section and source.

    Raises:
        SmallFileError: naming the value.
    """
    checks = {f"train_state.{name}": is_count(value) for name, value in dataclasses.asdict(state.train_state).items()}
    for name, model in state.models.items():
        checks[f"models.{name}.head"] = model.head in HEADS
        checks[f"the model's name {shown(name)}"] = NAME.fullmatch(name) is not None
        for i, group in enumerate(model.optimizer):
            checks[f"models.{name}.optimizer[{i}].step"] = is_count(group.get("step"))
    for prefix, entry in state.data.items():
        checks[f"data.{prefix}.fingerprint"] = isinstance(entry.get("fingerprint"), str)
        checks[f"data.{prefix}.tokenizer"] = isinstance(entry.get("tokenizer"), str | None)
        # Checkpoints of earlier versions have none.
        end = entry.get("end_of_document")
        checks[f"data.{prefix}.end_of_document"] = end is None or is_count(end)
        checks[f"data.{prefix}.consumed_samples"] = is_count(entry.get("consumed_samples"))
    checks["config.data.blend"] = not state.data or "blend" in state.config.get("data", {})
    for name, is_good in checks.items():
        if not is_good:
            raise SmallFileError(f"{where}: {name} is missing or not what a save writes there")


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


def check_continuable(state: CheckpointState, folder: Path, trained: Mapping[str, bool]) -> None:
    """Refuses a checkpoint that a job cannot go on from.

    Args:
        state: Of the checkpoint.
        folder: The checkpoint, for messages.
        trained: Names of the job's models, and whether each has an optimizer.
    Raises:
        CheckpointError: if it holds other models, or weights only of one that is trained.
    """
    if set(state.models) != set(trained):
        raise CheckpointError(
            f"{folder}: holds the models {', '.join(sorted(state.models))}, this job has "
            f"{', '.join(sorted(trained))}; name a checkpoint of this job, or start with checkpoint.init_from"
        )
    if any(trained[name] and not model.optimizer for name, model in state.models.items()):
        raise CheckpointError(
            f"{folder}: holds weights only, a run cannot go on from it; start with checkpoint.init_from={folder}"
        )


def check_heads(state: CheckpointState, folder: Path, heads: Mapping[str, str]) -> None:
    """Refuses a checkpoint whose models have other heads than a job's.

    Args:
        state: Of the checkpoint, which holds these models.
        folder: The checkpoint, for messages.
        heads: Of the job's models, by name.
    Raises:
        CheckpointError: naming a model whose head differs.
    """
    for name, head in heads.items():
        saved = state.model(name, folder).head
        if saved != head:
            raise CheckpointError(f"{folder}: model {name!r} has a {saved} head, this job's a {head} head")


def config_sections(config: ResolvedConfig) -> dict[str, Any]:
    """The resolved configuration as plain data."""
    names = ("model", "parallel", "optimizer", "training", "data", "checkpoint", "logging", "ppo")
    return {name: to_dict(getattr(config, name)) for name in names}
