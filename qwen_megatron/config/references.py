"""References to another value, `${section.key}`: nothing else in a text is looked up, the environment never."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from data_tools.settings.nodes import LONGEST_TEXT, texts, written
from data_tools.settings.problems import Problems
from data_tools.settings.words import show
from data_tools.settings.yaml_text import parse_nodes
from qwen_megatron.config.schema import TYPES, closest_key, default_of

REFERENCE = re.compile(r"\$\{([a-z_]+\.[a-z0-9_]+)\}")


@dataclass(frozen=True, kw_only=True)
class Given:
    """One value a user gave.

    Attributes:
        key: `section.name`.
        node: The YAML value.
        where: Place in the file for messages; empty for an override.
        text: Of an override, the value as it was typed.
    """

    key: str
    node: yaml.Node
    where: str
    text: str = ""


class ReferenceProblem(Exception):
    """A reference leads nowhere; the message is the rule."""


def referenced(
    item: Given, given: Mapping[str, Given], expanded: dict[str, yaml.Node | None], problems: Problems
) -> yaml.Node | None:
    """The value with its references replaced by what they name; None if one leads nowhere.

    Args:
        item: The value.
        given: All values.
        expanded: Filled; each value is worked out once, whoever refers to it.
        problems: Gets what is wrong, once.
    """
    if item.key in expanded:
        return expanded[item.key]
    if all("${" not in text for text in texts(item.node)):
        expanded[item.key] = item.node
        return item.node
    expanded[item.key] = None
    try:
        expanded[item.key] = replaced(item.node, given, expanded, problems, item.key)
    except ReferenceProblem as error:
        if str(error):
            problems.add(item.key, written(item.node), f"{error}{item.where}")
    return expanded[item.key]


def replaced(
    node: yaml.Node, given: Mapping[str, Given], expanded: dict[str, yaml.Node | None], problems: Problems, key: str
) -> yaml.Node:
    """A node like `node` without references.

    Raises:
        ReferenceProblem: the rule that is broken; without words where the fault lies, and is reported, elsewhere.
    """
    if isinstance(node, yaml.SequenceNode):
        children = [replaced(child, given, expanded, problems, key) for child in node.value]
        return yaml.SequenceNode(node.tag, children, node.start_mark)
    if isinstance(node, yaml.MappingNode):
        entries = [(name, replaced(child, given, expanded, problems, key)) for name, child in node.value]
        return yaml.MappingNode(node.tag, entries, node.start_mark)
    check_references(node.value)
    if whole := REFERENCE.fullmatch(node.value):
        return value_named(whole[1], given, expanded, problems, key)
    parts: list[str] = []
    length = 0
    place = 0
    for match in REFERENCE.finditer(node.value):
        named = value_named(match[1], given, expanded, problems, key)
        if not isinstance(named, yaml.ScalarNode):
            raise ReferenceProblem(f"refers to {match[1]}, which is a list or a mapping; write the value itself")
        parts += [node.value[place : match.start()], named.value]
        place = match.end()
        length += len(parts[-2]) + len(parts[-1])
        if length > LONGEST_TEXT:
            break
    if length + len(node.value) - place > LONGEST_TEXT:
        raise ReferenceProblem(f"must not be longer than {LONGEST_TEXT} characters with what it refers to")
    return yaml.ScalarNode(node.tag, "".join([*parts, node.value[place:]]), node.start_mark)


def value_named(
    name: str, given: Mapping[str, Given], expanded: dict[str, yaml.Node | None], problems: Problems, key: str
) -> yaml.Node:
    """The value that a reference names: a given one, else the default.

    Raises:
        ReferenceProblem: there is none, or it leads back.
    """
    if name in given:
        begun = name in expanded
        node = referenced(given[name], given, expanded, problems)
        if node is None and begun and problems.usable(name):
            raise ReferenceProblem(f"refers to {name}, which refers back to it; write the value itself")
        if node is None:
            raise ReferenceProblem
        return node
    default = default_of(name)
    node = None if default in (dataclasses.MISSING, None) else parse_nodes(show(default) or "''")
    if node is None or name.startswith("model."):
        raise ReferenceProblem(
            f"refers to {name}, which is not given here (presets are applied later); write the value itself"
        )
    return node


def check_references(text: str) -> None:
    """Allows `${section.key}` of keys that exist and nothing else that begins like it.

    Raises:
        ReferenceProblem: the rule that is broken.
    """
    if "${" in REFERENCE.sub("", text):
        raise ReferenceProblem(
            "only references of the form ${section.key} are allowed, neither resolvers nor the environment; write the "
            "value itself"
        )
    for key in REFERENCE.findall(text):
        if key not in TYPES:
            raise ReferenceProblem(f"refers to the unknown key {key}; the closest known one is {closest_key(key)}")
