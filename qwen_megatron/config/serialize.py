"""Configuration dataclasses as plain data for JSON, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from data_tools.io.small_json import fits
from qwen_megatron.config.problems import MOST_SUGGESTIONS
from qwen_megatron.config.setting import broken_fields, closest, show
from qwen_megatron.errors import ConfigError

Section = TypeVar("Section")


def to_dict(section: Any) -> dict[str, Any]:
    """A configuration dataclass as nested dicts, lists and scalars; `from_dict` turns it back."""
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
    """A configuration dataclass from `to_dict`'s data.

    Args:
        kind: A section such as `ModelConfig`.
        content: Parsed JSON.
        name: Of the section, for errors.
    Raises:
        ConfigError: with every key that is unknown, missing, of the wrong type or out of bounds.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}={show(content)}: must be a mapping of settings")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    types_of = typing.get_type_hints(kind)
    unknown = [key for key in content if key not in fields][:MOST_SUGGESTIONS]
    problems = [unknown_key(f"{name}.{key}", str(key), tuple(fields)) for key in unknown]
    values = {}
    for key, field in fields.items():
        if key in content:
            value = content[key]
            if fits(value, types_of[key]):
                values[key] = tuple(value) if isinstance(value, list) else value
            else:
                problems.append(f"{name}.{key}={show(value)}: must be {type_name(types_of[key])}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{name}.{key}: is missing")
    if problems:
        raise ConfigError(problems)
    section = kind(**values)
    if broken := broken_fields(section):
        raise ConfigError([f"{name}.{key}={show(values[key])}: {rule}" for key, rule in broken.items()])
    return section


def unknown_key(key: str, word: str, known: tuple[str, ...], section: str = "") -> str:
    """The message for a key that does not exist.

    Args:
        key: As the user gave it.
        word: The part of it that is unknown.
        known: What could have stood there.
        section: Prefix of the known names, with its dot.
    """
    match = closest(word, known)
    return f"{show(key)}: unknown key; the closest known one is {section}{match}"


def type_name(kind: Any) -> str:
    """A field's type in words."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        words = " or ".join(type_name(argument) for argument in arguments)
        return f"{words} or null" if type(None) in typing.get_args(kind) else words
    names = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a string",
        tuple: "a list",
    }
    return names.get(typing.get_origin(kind) or kind, "a mapping")
