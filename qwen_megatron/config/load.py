"""From a YAML file and dotted overrides to checked settings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_tools.settings.check import UNUSABLE, checked
from data_tools.settings.nodes import parse_override, plain, quoted, written
from data_tools.settings.problems import MOST_SUGGESTIONS, Problems
from data_tools.settings.records import CheckedLater
from data_tools.settings.words import LONGEST_WORD, closest, members, show
from data_tools.settings.yaml_text import YamlError, pairs, read_nodes, refused_tag, scalar
from qwen_megatron.config.recipes import file_of
from qwen_megatron.config.references import Given, referenced
from qwen_megatron.config.schema import SECTIONS, TYPES, Settings, closest_key, default_of, is_open
from qwen_megatron.errors import ConfigError

NAMES = tuple(SECTIONS)


# YAML files, by their paths or as `recipe:NAME`.
Files = str | Path | Sequence[str | Path] | None


def load_config(files: Files, overrides: Sequence[str] = ()) -> Settings:
    """Reads what a user gives.

    Args:
        files: YAML file, several of which later ones win over earlier ones, or None.
        overrides: `section.key=value` texts, values in YAML; they win over the files, later ones over earlier ones.
    Raises:
        ConfigError: with everything that cannot be read, is unknown, has the wrong type or is out of bounds.
    """
    problems = Problems()
    settings = read_config(files, overrides, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return settings


def read_config(files: Files, overrides: Sequence[str], problems: Problems) -> Settings:
    """Reads what a user gives, by the arguments of `load_config`; what is wrong goes to `problems` and is left out."""
    given: dict[str, Given] = {}
    for path in named(files):
        given |= {item.key: item for item in file_values(path, problems)}
    given |= {item.key: item for item in override_values(overrides, problems)}
    settings: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    expanded: dict[str, yaml.Node | None] = {}
    for item in given.values():
        node = referenced(item, given, expanded, problems)
        value = UNUSABLE if node is None else typed(item, node, problems)
        if value is UNUSABLE:
            problems.unusable.add(item.key)
        elif value is not None or not is_open(item.key):
            section, _, name = item.key.partition(".")
            settings[section][name] = value
    return settings


def typed(item: Given, node: yaml.Node, problems: Problems) -> Any:
    """The value of a node as the setting's type wants it; UNUSABLE if it breaks a rule."""
    hint = TYPES[item.key]
    try:
        value = plain(hint, node)
    except YamlError as error:
        problems.add(item.key, written(node), f"{error}{item.where}")
        return UNUSABLE
    if value is None and is_open(item.key):
        return None
    if any(isinstance(mark, CheckedLater) for mark in getattr(hint, "__metadata__", ())):
        return value
    default = default_of(item.key)
    # Of an open setting it depends on the preset or on other values.
    default = None if is_open(item.key) else default
    found = Problems()
    result = checked(hint, value, item.key, found, default=default, place=lambda _: item.where)
    if result is UNUSABLE and str in members(hint) and isinstance(node, yaml.MappingNode) and not item.where:
        text = item.text
        problems.add(item.key, text, f"is a mapping in YAML; if it is text, put it in quotes: {quoted(item.key, text)}")
    else:
        problems.messages += found.messages
    return result


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The configuration files and the overrides."""
    return [text for text in settings if "=" not in text], [text for text in settings if "=" in text]


def named(files: Files) -> Sequence[str | Path]:
    """The files in their order."""
    if files is None:
        return ()
    return (files,) if isinstance(files, str | Path) else files


def file_values(path: str | Path, problems: Problems) -> Iterator[Given]:
    """The values of a file; if it cannot be read at all, no rule can be applied to any key."""
    try:
        root = read_nodes(file_of(path))
        if root is not None:
            yield from section_values(root, path, problems)
    except YamlError as error:
        problems.messages.append(f"{path}: {error}")
        problems.unusable.update(TYPES)


def section_values(root: yaml.Node, path: str | Path, problems: Problems) -> Iterator[Given]:
    """The values of all sections of a file."""
    if not isinstance(root, yaml.MappingNode) or refused_tag(root):
        raise YamlError(f"must hold sections ({', '.join(NAMES)}), each with settings")
    seen: dict[str, int] = {}
    for name, node, line in pairs(root):
        where = f" ({path}:{line})"
        note_repetition(name, line, seen, path, problems)
        section = name if name in SECTIONS else meant_section(name, node, where, problems)
        if section is None:
            continue
        if (tag := refused_tag(node)) is not None:
            problems.add(section, written(node), f"the tag {show(tag)} is not allowed; write a mapping{where}")
        elif isinstance(node, yaml.MappingNode):
            for setting, value, value_line in pairs(node):
                note_repetition(f"{section}.{setting}", value_line, seen, path, problems)
                yield from known(f"{section}.{setting}", value, f" ({path}:{value_line})", problems)
        elif not isinstance(node, yaml.ScalarNode) or scalar(node) is not None:
            problems.add(section, written(node), f"must be a mapping of settings{where}")


def meant_section(name: str, node: yaml.Node, where: str, problems: Problems) -> str | None:
    """Reports a section that does not exist; its settings are examined as those of the one that was probably meant."""
    if name == "derived":
        problems.add(name, written(node), f"is worked out from the other sections; delete it{where}")
        return None
    if not isinstance(node, yaml.MappingNode):
        unknown(name, node, where, problems)
        return None
    word = name[:LONGEST_WORD].lower()
    problems.add(name, written(node), f"unknown section; the closest known one is {closest(word, NAMES)}{where}")
    return next(iter(difflib.get_close_matches(word, NAMES, n=1)), None)


def note_repetition(key: str, line: int, seen: dict[str, int], path: str | Path, problems: Problems) -> None:
    """A key given twice in a file is a mistake, not an override."""
    if key in seen:
        problems.messages.append(f"{key}: given twice ({path}:{seen[key]} and {line}); keep one")
    seen[key] = line


def override_values(overrides: Sequence[str], problems: Problems) -> Iterator[Given]:
    """The values of the overrides, in order."""
    for text in overrides:
        parsed = parse_override(text, problems)
        if parsed is None:
            continue
        key, node = parsed
        value = text.partition("=")[2]
        try:
            if key in SECTIONS and isinstance(node, yaml.MappingNode):
                for name, item, _ in pairs(node):
                    yield from known(f"{key}.{name}", item, "", problems)
            else:
                yield from known(key, node, "", problems, text=value)
        except YamlError as error:
            problems.add(key, value, f"{error}; quote special characters")


def known(key: str, node: yaml.Node, where: str, problems: Problems, *, text: str = "") -> Iterator[Given]:
    """The value if the key exists."""
    if key in TYPES:
        yield Given(key=key, node=node, where=where, text=text)
    else:
        unknown(key, node, where, problems)


def unknown(key: str, node: yaml.Node, where: str, problems: Problems) -> None:
    """Reports a key that does not exist; what was probably meant takes no part in further rules."""
    if key in SECTIONS:
        problems.add(key, written(node), f"is a section; name one of its settings, such as {key}.{example(key)}{where}")
        return
    if len(problems.messages) >= MOST_SUGGESTIONS:
        problems.add(key, written(node), f"unknown key{where}")
        return
    meant = closest_key(key)
    problems.add(key, written(node), f"unknown key; the closest known one is {meant}{where}")
    problems.unusable.add(meant)


def example(section: str) -> str:
    """A setting of a section."""
    return "preset" if section == "model" else dataclasses.fields(SECTIONS[section])[0].name
