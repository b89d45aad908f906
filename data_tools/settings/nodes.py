"""YAML nodes to plain data, as the types of the settings want it: text stays as it was written."""

import dataclasses
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from data_tools.settings.check import UNUSABLE, Location, checked, dotted
from data_tools.settings.problems import Problems
from data_tools.settings.records import hints_of
from data_tools.settings.words import choices, members, show
from data_tools.settings.yaml_text import STANDARD, YamlError, pairs, parse_nodes, refused_tag, scalar

NO_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# Of every usual file system: the longest path.
LONGEST_TEXT = 4096
# Levels and values of one setting, aliases written out: a file that repeats itself could stand for any number.
MOST_LEVELS = 32
MOST_VALUES = 20_000


def read_record(
    kind: type[Any], node: yaml.Node, key: str, file: str, problems: Problems, *, without: Sequence[str] = ()
) -> Any:
    """A record from a mapping node; UNUSABLE if anything about it is wrong.

    Args:
        kind: The record.
        node: Where its values stand.
        key: Prefix of the keys in messages.
        file: Name of the file; empty for none.
        problems: Gets every mistake.
        without: Keys of the node that do not belong to the record.
    """
    if isinstance(node, yaml.MappingNode):
        entries = [(name, item) for name, item in node.value if name.value not in without]
        node = yaml.MappingNode(node.tag, entries, node.start_mark)

    def place(location: Location) -> str:
        return f" ({file}:{line_of(node, location)})" if file else ""

    try:
        value = plain(kind, node)
    except YamlError as error:
        part = node_at(node, error.location)
        # What is wrong may be a character that would break the line.
        shown = written(part).encode("unicode_escape").decode("ascii")
        name = dotted(key, error.location)
        problems.messages.append(f"{f'{name}={show(shown)}: ' if name else ''}{error}{place(error.location)}")
        return UNUSABLE
    return checked(kind, value, key, problems, place=place)


def plain(hint: Any, node: yaml.Node) -> Any:
    """None, bool, int, float, str, and lists and dicts of these.

    Raises:
        YamlError: tags, a key twice, control characters, or more than anybody would write.
    """
    budget = [MOST_VALUES]
    return plain_part(hint, node, budget, 0)


def plain_part(hint: Any, node: yaml.Node, budget: list[int], level: int) -> Any:
    """One value of `plain`; `budget` counts down."""
    budget[0] -= 1
    if level > MOST_LEVELS or budget[0] < 0:
        raise YamlError("must not be nested so deeply, or hold so many values")
    if (tag := refused_tag(node)) is not None:
        raise YamlError(f"the tag {show(tag)} is not allowed; write a plain value")
    kinds = members(hint)
    if isinstance(node, yaml.ScalarNode):
        value = scalar(node)
        if isinstance(value, str):
            check_text(value)
        return node.value if value is not None and (str in kinds or choices(hint)) else value
    if isinstance(node, yaml.SequenceNode):
        arguments = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is tuple), (Any, ...))
        variadic = arguments[-1] is Ellipsis
        return [
            located(i, arguments[0 if variadic else min(i, len(arguments) - 1)], child, budget, level + 1)
            for i, child in enumerate(node.value)
        ]
    record = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    of_values = next((typing.get_args(kind)[1] for kind in kinds if is_mapping(kind)), Any)
    fields = hints_of(record) if record is not None else {}
    values: dict[str, Any] = {}
    for key, child, line in pairs(typing.cast(yaml.MappingNode, node)):
        check_text(key)
        if key in values:
            raise YamlError(f"{show(key)} is given twice (line {line}); keep one")
        values[key] = located(key, fields.get(key, of_values), child, budget, level + 1)
    return values


def located(step: int | str, hint: Any, node: yaml.Node, budget: list[int], level: int) -> Any:
    """One value of a list or a mapping; what is wrong with it is said with the way to it."""
    try:
        return plain_part(hint, node, budget, level)
    except YamlError as error:
        error.location = (step, *error.location)
        raise


def is_mapping(kind: Any) -> bool:
    """Whether a type is a mapping of names to values."""
    return typing.get_origin(kind) not in (None, tuple) and len(typing.get_args(kind)) == 2


def check_text(text: str) -> None:
    """Lets text pass that a file name can hold.

    Raises:
        YamlError: it is longer, or holds characters that none can have.
    """
    if len(text) > LONGEST_TEXT:
        raise YamlError(f"must not be longer than {LONGEST_TEXT} characters")
    if NO_TEXT.search(text):
        raise YamlError("must not contain control characters or halves of surrogate pairs")


def node_at(node: yaml.Node, location: Location) -> yaml.Node:
    """The part of a node at a location that exists."""
    for step in location:
        node = (
            node.value[step] if isinstance(step, int) else next(item for key, item in node.value if key.value == step)
        )
    return node


def line_of(node: yaml.Node, location: Location) -> int:
    """Line, from 1, of the part of a node at a location, or of the last part on the way to it."""
    for step in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if not found:
                break
            key, node = found[0]
            if step == location[-1]:
                return int(key.start_mark.line) + 1
    return int(node.start_mark.line) + 1


def parse_override(text: str, problems: Problems) -> tuple[str, yaml.Node] | None:
    """Key and value of `key=value`, the value in YAML; None if it is wrong."""
    key, equals, value = text.partition("=")
    if not equals:
        problems.messages.append(f"{show(text)}: an override must be section.key=value")
        return None
    try:
        node = parse_nodes(value)
    except YamlError as error:
        problems.add(key, value, f"{error}; quote special characters")
        return None
    end = node.end_mark.index if node is not None and node.end_mark is not None else 0
    if value[end:].strip():
        # YAML would drop it without a word.
        rule = "what follows a space and # is a comment in YAML and would be lost; put the value in quotes"
        problems.add(key, value, f"{rule}: {quoted(key, value)}")
        return None
    return key, node or yaml.ScalarNode(STANDARD + "null", "")


def assembled(assignments: Iterable[tuple[str, yaml.Node]], problems: Problems) -> yaml.MappingNode:
    """The mapping that dotted keys with values describe: `rules.c4` is `c4` in `rules`.

    Args:
        assignments: Dotted key and value of each.
        problems: Gets keys that are given twice, or both a value and a mapping.
    """
    tree: dict[str, Any] = {}
    for key, node in assignments:
        *parents, last = key.split(".")
        place: Any = tree
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            problems.add(key, written(node), "contradicts an earlier argument")
        else:
            place[last] = node
    return mapping_node(tree)


def mapping_node(tree: Mapping[str, Any]) -> yaml.MappingNode:
    """Nested mappings of names to nodes as one node."""
    entries = [
        (text_node(key), value if isinstance(value, yaml.Node) else mapping_node(value)) for key, value in tree.items()
    ]
    return yaml.MappingNode(STANDARD + "map", entries)


def text_node(text: str) -> yaml.ScalarNode:
    """A text as a node."""
    return yaml.ScalarNode(STANDARD + "str", text)


def list_node(items: Sequence[yaml.Node]) -> yaml.SequenceNode:
    """Nodes as one."""
    return yaml.SequenceNode(STANDARD + "seq", list(items))


def quoted(key: str, value: str) -> str:
    """An override whose value is text, as it is typed in a shell."""
    return f"""'{key}="{value}"'"""


def texts(node: yaml.Node) -> Iterator[str]:
    """All scalar texts of a value, keys left out."""
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    elif isinstance(node, yaml.SequenceNode):
        yield from (child.value for child in node.value if isinstance(child, yaml.ScalarNode))
    else:
        yield from (child.value for _, child in node.value if isinstance(child, yaml.ScalarNode))


def written(node: yaml.Node) -> str:
    """A value roughly as the user wrote it, for messages."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    return "[...]" if isinstance(node, yaml.SequenceNode) else "{...}"
