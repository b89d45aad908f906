"""From a YAML file and dotted overrides to a `Config`, through OmegaConf's structured configuration.

References to another value, `${section.key}`, are allowed; OmegaConf's resolvers, which read the environment or run
code, are not.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qwen_megatron.config.problems import MOST_SUGGESTIONS, Problems
from qwen_megatron.config.schema import Config
from qwen_megatron.config.serialize import type_name
from qwen_megatron.config.setting import LONGEST_WORD, closest, show
from qwen_megatron.config.yaml_text import STANDARD, YamlError, pairs, parse_nodes, read_nodes, refused_tag, scalar
from qwen_megatron.errors import ConfigError

NO_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# Of every usual file system: the longest path.
LONGEST_TEXT = 4096
REFERENCE = re.compile(r"\$\{([a-z_]+\.[a-z0-9_]+)\}")
TYPES: dict[str, Any] = {
    f"{section}.{name}": hint
    for section, kind in typing.get_type_hints(Config).items()
    for name, hint in typing.get_type_hints(kind).items()
}
SECTIONS = tuple(field.name for field in dataclasses.fields(Config))


@dataclass(frozen=True, kw_only=True)
class Given:
    """One value a user gave.

    Attributes:
        key: `section.name`.
        node: The YAML value.
        where: Place in the file for messages; empty for an override.
    """

    key: str
    node: yaml.Node
    where: str


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        path: YAML file; None for none.
        overrides: `section.key=value` texts, values in YAML; they win over the file, later ones over earlier ones.
    Raises:
        ConfigError: with everything that cannot be read, is unknown or has the wrong type.
    """
    problems = Problems()
    config = read_config(path, overrides, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return config


def read_config(path: str | Path | None, overrides: Sequence[str], problems: Problems) -> Config:
    """As `load_config`; what is wrong goes to `problems`, with the default left in its place."""
    tree = OmegaConf.structured(Config)
    for section in (tree, *(tree[name] for name in SECTIONS)):
        # The dataclasses are frozen; the tree is ours until it becomes them.
        OmegaConf.set_readonly(section, False)
    given: dict[str, Given] = {}
    for item in [*file_values(path, problems), *override_values(overrides, problems)]:
        given[item.key] = item
    for item in given.values():
        store(tree, item, problems)
    lengths: dict[str, int] = {}
    for item in given.values():
        if length_with_references(item.key, given, lengths) > LONGEST_TEXT:
            rule = f"must not be longer than {LONGEST_TEXT} characters with what it refers to{item.where}"
            problems.add(item.key, written(item.node), rule)
    for item in given.values():
        follow_references(tree, item, problems)
    return typing.cast(Config, OmegaConf.to_object(tree))


def file_values(path: str | Path | None, problems: Problems) -> Iterator[Given]:
    """The values of the file; if it cannot be read at all, no rule can be applied to any key."""
    if path is None:
        return
    try:
        root = read_nodes(Path(path))
        if root is not None:
            yield from section_values(root, path, problems)
    except YamlError as error:
        problems.messages.append(f"{path}: {error}")
        problems.unusable.update(TYPES)


def section_values(root: yaml.Node, path: str | Path, problems: Problems) -> Iterator[Given]:
    """The values of all sections of a file."""
    if not isinstance(root, yaml.MappingNode) or refused_tag(root):
        raise YamlError(f"must hold sections ({', '.join(SECTIONS)}), each with settings")
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
    problems.add(name, written(node), f"unknown section; the closest known one is {closest(word, SECTIONS)}{where}")
    return next(iter(difflib.get_close_matches(word, SECTIONS, n=1)), None)


def note_repetition(key: str, line: int, seen: dict[str, int], path: str | Path, problems: Problems) -> None:
    """A key given twice in a file is a mistake, not an override."""
    if key in seen:
        problems.messages.append(f"{key}: given twice ({path}:{seen[key]} and {line}); keep one")
    seen[key] = line


def override_values(overrides: Sequence[str], problems: Problems) -> Iterator[Given]:
    """The values of the overrides, in order."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            problems.messages.append(f"{show(text)}: an override must be section.key=value")
            continue
        try:
            node = parse_nodes(value) or yaml.ScalarNode(STANDARD + "null", "")
            if key in SECTIONS and isinstance(node, yaml.MappingNode):
                for name, item, _ in pairs(node):
                    yield from known(f"{key}.{name}", item, "", problems)
            else:
                yield from known(key, node, "", problems)
        except YamlError as error:
            problems.add(key, value, f"{error}; quote special characters")


def known(key: str, node: yaml.Node, where: str, problems: Problems) -> Iterator[Given]:
    """The value if the key exists."""
    if key in TYPES:
        yield Given(key=key, node=node, where=where)
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
    """The first setting of a section."""
    return next(key.partition(".")[2] for key in TYPES if key.startswith(f"{section}."))


def closest_key(key: str) -> str:
    """The known key most like an unknown one: as a whole, or its last part if the section is wrong or left out."""
    key = key[:LONGEST_WORD]
    _, _, name = key.rpartition(".")

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key.lower(), candidate).ratio()
        last = difflib.SequenceMatcher(None, name.lower(), candidate.partition(".")[2]).ratio()
        return max(whole, last)

    return max(TYPES, key=likeness)


def store(tree: DictConfig, item: Given, problems: Problems) -> None:
    """Puts one value into the tree, which converts it to the field's type."""
    default = default_of(item.key)
    try:
        OmegaConf.update(tree, item.key, value_of(item), merge=False)
    except YamlError as error:
        problems.add(item.key, written(item.node), f"{error}{item.where}")
    except (OmegaConfBaseException, OverflowError):
        value = scalar(item.node) if isinstance(item.node, yaml.ScalarNode) else None
        rule = f"must be {type_name(TYPES[item.key])}"
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
            rule = f"{rule}; use {int(value)}"
        elif default is not None:
            rule = f"{rule}; use {show(default)} (the default)"
        problems.add(item.key, written(item.node), f"{rule}{item.where}")


def value_of(item: Given) -> object:
    """The plain value of a node, as the field's type wants it.

    Raises:
        YamlError: a tag, a resolver, or a container inside a container.
    """
    node = item.node
    if isinstance(node, yaml.ScalarNode):
        kinds = (TYPES[item.key], *typing.get_args(TYPES[item.key]))
        value = plain_scalar(node, is_text=str in kinds)
        if bool in kinds and type(value) is int:
            raise YamlError("must be true or false")
        return value
    check_tag(node)
    if isinstance(node, yaml.SequenceNode):
        return [plain_item(child, is_text=True) for child in node.value]
    values: dict[str, object] = {}
    for key, child, line in pairs(typing.cast(yaml.MappingNode, node)):
        check_text(key)
        if key in values:
            raise YamlError(f"{show(key)} is given twice (line {line}); keep one")
        values[key] = plain_item(child, is_text=False)
    return values


def plain_item(node: yaml.Node, *, is_text: bool) -> object:
    """A member of a list or mapping; only scalars have a place there."""
    check_tag(node)
    if not isinstance(node, yaml.ScalarNode):
        raise YamlError("must hold plain values, not lists or mappings")
    return plain_scalar(node, is_text=is_text)


def plain_scalar(node: yaml.ScalarNode, *, is_text: bool) -> object:
    """A scalar; where text is wanted, exactly as written, so that a path `007` stays `007`."""
    check_tag(node)
    value = scalar(node)
    if isinstance(value, str):
        check_text(value)
    return node.value if is_text and value is not None else value


def check_tag(node: yaml.Node) -> None:
    """Refuses tags that name anything but a plain value."""
    tag = refused_tag(node)
    if tag is not None:
        raise YamlError(f"the tag {show(tag)} is not allowed; write a plain value")


def check_text(text: str) -> None:
    """Allows text that a file name can hold, with `${section.key}` and nothing else that OmegaConf would evaluate."""
    if len(text) > LONGEST_TEXT:
        raise YamlError(f"must not be longer than {LONGEST_TEXT} characters")
    if NO_TEXT.search(text):
        raise YamlError("must not contain control characters or halves of surrogate pairs")
    if "${" in REFERENCE.sub("", text):
        raise YamlError(
            "only references of the form ${section.key} are allowed, neither resolvers nor the environment; write the "
            "value itself"
        )
    for key in REFERENCE.findall(text):
        if key not in TYPES:
            raise YamlError(f"refers to the unknown key {key}; the closest known one is {closest_key(key)}")


def length_with_references(key: str, given: Mapping[str, Given], lengths: dict[str, int]) -> int:
    """Characters of a value with everything it refers to written out, but only if it refers to anything.

    A few values that each name the one before a few times would otherwise make one of any length.

    Args:
        key: Of the value.
        given: All values.
        lengths: Filled with what is found; a value that refers to itself counts once.
    """
    if key in lengths or key not in given:
        return lengths.get(key, 0)
    lengths[key] = 0
    found = list(texts(given[key].node))
    names = [name for text in found for name in REFERENCE.findall(text)]
    own = sum(map(len, found)) if names else 0
    lengths[key] = own + sum(max(length_with_references(name, given, lengths), 1) for name in names)
    return lengths[key]


def follow_references(tree: DictConfig, item: Given, problems: Problems) -> None:
    """Replaces the references in one value by what they name."""
    names = [name for text in texts(item.node) for name in REFERENCE.findall(text)]
    if not names:
        return
    section, _, name = item.key.partition(".")
    if not problems.usable(item.key, *names):
        problems.unusable.add(item.key)
        tree[section][name] = default_of(item.key)
        return
    try:
        value = tree[section][name]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        empty = [key for key in names if OmegaConf.select(tree, key) is None]
    except (OmegaConfBaseException, RecursionError) as error:
        problems.add(item.key, written(item.node), f"{str(error).splitlines()[0]}{item.where}")
        value, empty = default_of(item.key), []
    if empty:
        rule = f"refers to {empty[0]}, which is not given here (presets are applied later); write the value itself"
        problems.add(item.key, written(item.node), f"{rule}{item.where}")
    tree[section][name] = value


def default_of(key: str) -> object:
    """The value of a key that nobody gave."""
    section, _, name = key.partition(".")
    return getattr(getattr(Config(), section), name)


def texts(node: yaml.Node) -> Iterator[str]:
    """All scalar texts of a value."""
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    elif isinstance(node, yaml.SequenceNode):
        yield from (child.value for child in node.value if isinstance(child, yaml.ScalarNode))
    else:
        yield from (child.value for _, child in node.value if isinstance(child, yaml.ScalarNode))


def written(node: yaml.Node) -> str:
    """A value roughly as the user wrote it, for messages."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    return "[...]" if isinstance(node, yaml.SequenceNode) else "{...}"
