"""Configuration records as plain data for JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from data_tools.settings.check import checked
from data_tools.settings.problems import Problems
from data_tools.settings.words import show
from qwen_megatron.errors import ConfigError

Section = TypeVar("Section")


def to_dict(section: Any) -> dict[str, Any]:
    """A configuration record as nested dicts, lists and scalars; `from_dict` turns it back."""
    return {field.name: plain(getattr(section, field.name)) for field in dataclasses.fields(section)}


def plain(value: Any) -> Any:
    """One value of `to_dict`."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def from_dict(kind: type[Section], content: object, name: str) -> Section:
    """A configuration record from `to_dict`'s data.

    Args:
        kind: A section such as `ModelConfig`.
        content: Parsed JSON.
        name: Of the section, for errors.
    Raises:
        ConfigError: with every key that is unknown, missing, of the wrong type or out of bounds.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}={show(content)}: must be a mapping of settings")
    problems = Problems()
    section: Section = checked(kind, dict(content), name, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return section
