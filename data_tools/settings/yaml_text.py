"""Reads YAML into a tree of nodes with line numbers; builds no objects but plain scalars.

Types of scalars follow the core schema of YAML 1.2: `010` is ten, `1:30` and `yes` are text, `3e-4` is a number. Tags
other than those of plain values are refused, so nothing in a file can name a Python object.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
# Keys and values: a thousand corpora with their shares take two thousand.
MOST_NODES = 20_000
STANDARD = "tag:yaml.org,2002:"
PLAIN_TAGS = {STANDARD + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}


# Lists in mappings in lists: pipelines have five levels.
MOST_LEVELS = 32


class YamlError(Exception):
    """The text is not plain YAML; the message says where.

    Attributes:
        location: Keys and numbers that lead to the value at fault, where they are known.
    """

    location: tuple[int | str, ...] = ()


class CoreLoader(yaml.SafeLoader):
    """Composes nodes; `compose` is all that is used of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.num_nodes += 1
        if self.num_nodes > MOST_NODES:
            # Before the rest is read, which takes a minute for a megabyte.
            raise YamlError(f"holds more than {MOST_NODES} keys and values; this is not a settings file")
        return super().compose_node(parent, index)


# Of its own: the inherited ones are those of YAML 1.1, where `010` is eight and `no` is false.
CoreLoader.yaml_implicit_resolvers = {}
NUMBER_START = list("-+.0123456789")
CoreLoader.add_implicit_resolver(STANDARD + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
CoreLoader.add_implicit_resolver(STANDARD + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
CoreLoader.add_implicit_resolver(STANDARD + "int", re.compile(r"^[-+]?[0-9][0-9_]*$"), NUMBER_START)
CoreLoader.add_implicit_resolver(
    STANDARD + "float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN))$"
    ),
    NUMBER_START,
)


def read_nodes(path: Path) -> yaml.Node | None:
    """The root node of a file; None if it is empty.

    Raises:
        YamlError: the file cannot be read, is too large, is not UTF-8 or not YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise YamlError("no such file") from error
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES} bytes; this is not a settings file")
    try:
        return parse_nodes(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise YamlError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error


def parse_nodes(text: str) -> yaml.Node | None:
    """The root node of a text; None if it is empty.

    Raises:
        YamlError: the text is not YAML, or too long.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"longer than {MAX_BYTES} characters; this is not a value")
    try:
        return yaml.compose(text, Loader=CoreLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlError(f"{line}not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise YamlError("nested too deeply") from error


def scalar(node: yaml.ScalarNode) -> object:
    """None, bool, int, float or str; digits beyond Python's limit for integers stay text."""
    text = node.value
    match node.tag.removeprefix(STANDARD):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" | "float" as kind:
            try:
                return int(text) if kind == "int" else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            except ValueError:
                return text
        case _:
            return text


def pairs(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, int]]:
    """Key, value node and line number of each entry; keys are text as written.

    Raises:
        YamlError: a key is not a scalar.
    """
    for key, value in node.value:
        # A node that was put together from arguments has no place.
        line = key.start_mark.line + 1 if key.start_mark else 0
        if not isinstance(key, yaml.ScalarNode) or key.tag not in PLAIN_TAGS:
            raise YamlError(f"line {line}: a key must be plain text")
        yield key.value, value, line


def refused_tag(node: yaml.Node) -> str | None:
    """The tag of a node if it is not one of plain values, as written in the file."""
    if node.tag in PLAIN_TAGS:
        return None
    return "!!" + node.tag.removeprefix(STANDARD) if node.tag.startswith(STANDARD) else node.tag
