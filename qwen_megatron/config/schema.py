"""What a configuration file may hold: sections of settings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from data_tools.settings.records import hints_of, record
from data_tools.settings.words import LONGEST_WORD
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.config.sections.logging import LoggingConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.optimizer import OptimizerConfig
from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.config.sections.ppo import PpoConfig
from qwen_megatron.config.sections.training import TrainingConfig


@record
class ModelSettings(ModelConfig):
    """Section `model` as a file may give it."""

    preset: Literal["tiny", "qwen-0.5b", "qwen-1.8b", "qwen-7b", "qwen-14b", "qwen-72b"] | None = None
    """Released or test architecture that supplies every value of this section not given here."""


SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "parallel": ParallelConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "data": DataConfig,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
    "ppo": PpoConfig,
}
# `section.name` -> type with its bounds.
TYPES: dict[str, Any] = {
    f"{name}.{key}": hint for name, kind in SECTIONS.items() for key, hint in hints_of(kind).items()
}

# Section -> name -> value, of what a user gave and nothing else; every value has its type and keeps its bounds.
Settings = Mapping[str, Mapping[str, Any]]


def default_of(key: str) -> Any:
    """The default of `section.name`; `dataclasses.MISSING` where it is needed or worked out from other values."""
    section, _, name = key.partition(".")
    field = next(field for field in dataclasses.fields(SECTIONS[section]) if field.name == name)
    return field.default


def is_open(key: str) -> bool:
    """Whether a setting is needed, taken from a preset or worked out where it is not given, as null says too."""
    return key.startswith("model.") or default_of(key) is dataclasses.MISSING


def closest_key(key: str) -> str:
    """The known key most like an unknown one: as a whole, or its last part if the section is wrong or left out."""
    key = key[:LONGEST_WORD]
    _, _, name = key.rpartition(".")

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key.lower(), candidate).ratio()
        last = difflib.SequenceMatcher(None, name.lower(), candidate.partition(".")[2]).ratio()
        return max(whole, last)

    return max(TYPES, key=likeness)
