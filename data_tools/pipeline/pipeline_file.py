"""pipeline.yaml: what it may say, and what it means."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest
from data_tools.errors import DataError
from data_tools.io.owned_paths import is_plain_name
from data_tools.io.small_json import shown
from data_tools.pipeline.settings import Problems, build, rule
from data_tools.stages.read import ReadStage
from data_tools.stages.registry import NEEDS, STAGES, SampleStage

MAX_FILE_BYTES = 1024 * 1024
MOST_LEVELS = 32
_LONGEST_KEY = 1000
# Keys, values and the signs between them: some ten thousand lines.
MOST_TOKENS = 50_000
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


class Stage(Protocol):
    """A function of the shards of the stage before it and of its own options."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Does what is not done yet; the manifests of all parts, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Head:
    output: str = rule(bool, "must be a path")
    stages: Any
    max_bad: str | None = None


@dataclass(frozen=True)
class NamedStage:
    """One entry of `stages`."""

    name: str
    kind: str
    stage: Any  # a Stage that is a dataclass

    def options(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self.stage)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A checked pipeline file.

    Attributes:
        output: the folder everything goes to.
        max_bad: limit of unreadable records, "100" or "0.1%"; None for no limit.
        stages: in order; the first is `read`.
    """

    output: Path
    max_bad: str | None
    stages: tuple[NamedStage, ...]


def load_pipeline(path: Path) -> Pipeline:
    """Reads and checks a pipeline file.

    Raises:
        DataError: all mistakes at once, one line each: file, key, value and the rule it breaks.
    """
    document = _read_yaml(path)
    problems = Problems(str(path))
    if not isinstance(document, Mapping):
        raise DataError(f"{path}: must be a mapping with the keys output and stages")
    head = build(_Head, document, "", problems)
    entries = document.get("stages")
    stages = _stages(entries if isinstance(entries, list) else [], problems)
    if problems.lines:
        raise DataError("\n".join(problems.lines))
    return Pipeline(output=Path(head.output), max_bad=head.max_bad, stages=stages)


def _stages(entries: Sequence[Any], problems: Problems) -> tuple[NamedStage, ...]:
    stages: list[NamedStage] = []
    names: set[str] = set()
    for number, entry in enumerate(entries):
        where = f"stages[{number}]"
        value = entry.get("kind") if isinstance(entry, Mapping) else entry
        if not isinstance(entry, Mapping) or not isinstance(value, str) or value not in STAGES:
            problems.add(f"{where}.kind", value, f"must be one of {', '.join(STAGES)}")
            continue
        kind = str(entry["kind"])
        name = entry.get("name", kind)
        name = name if isinstance(name, str) else shown(name)
        if not (name.replace("-", "").replace("_", "").isalnum() and is_plain_name(name)):
            problems.add(f"{where}.name", name, "must be letters, digits, - and _")
        if name in names:
            problems.add(f"{where}.name", name, "is used twice; give each stage a name of its own")
        names.add(name)
        if (kind == "read") != (number == 0):
            problems.add(f"{where}.kind", kind, "is out of place; read comes first and only there")
        if kind in NEEDS and all(stage.kind != NEEDS[kind] for stage in stages):
            problems.add(f"{where}.kind", kind, f"needs a stage {NEEDS[kind]} before it")
        before = stages[-1].kind if stages else ""
        if (before in ("tokenize", "mixture")) != (kind == "mixture"):
            problems.add(f"{where}.kind", kind, "is out of place; tokenize and, after it, mixture come last")
        values = {key: value for key, value in entry.items() if key not in ("name", "kind")}
        stage = build(STAGES[kind], values, f"{where}.", problems)
        _check_order(stages, stage, f"{where}.kind", kind, problems)
        stages.append(NamedStage(name, kind, stage))
    if not entries:
        problems.add("stages", list(entries), "must be a list of at least one stage")
    return tuple(stages)


def _check_order(stages: Sequence[NamedStage], stage: Any, where: str, kind: str, problems: Problems) -> None:
    """Stages before this one that would make it pointless, or are missing."""
    samples = [one.stage for one in stages if isinstance(one.stage, SampleStage)]
    if kind in ("exact_dedup", "fuzzy_dedup") and any(one.quality or one.cluster_size for one in samples):
        problems.add(where, kind, "would remove the copies that the stage sample before it makes; put it before that")
    if not isinstance(stage, SampleStage):
        return
    kept = {key for one in stages if isinstance(one.stage, ReadStage) for data in one.stage.inputs for key in data.keep}
    kinds = {one.kind for one in stages}
    if stage.quality and "quality" not in kinds | kept:
        problems.add(where, kind, "has bands of quality, but no stage quality before it gives scores")
    if stage.cluster_size and "exact_dedup" not in kinds and "cluster_size" not in kept:
        problems.add(where, kind, "has bands of cluster_size, but no stage exact_dedup before it counts them")


class _Loader(yaml.SafeLoader):
    """Plain values only: no tags, no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if len(key.value) > _LONGEST_KEY:
                raise yaml.constructor.ConstructorError(None, None, "a key is too long", key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _read_yaml(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is not a pipeline file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from error
    return parse_yaml(text, str(path))


def _check_tokens(text: str, name: str) -> None:
    """Looks at the pieces of ``text`` before anything is made of them."""
    depth = 0
    for number, token in enumerate(yaml.scan(text, Loader=_Loader)):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.TagToken | yaml.AliasToken):
            raise DataError(f"{name}:{line}: tags (!) and aliases (*) are not allowed; write the value itself")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > MOST_LEVELS or number > MOST_TOKENS:
            rule = f"more than {MOST_LEVELS} levels" if depth > MOST_LEVELS else f"more than {MOST_TOKENS} pieces"
            raise DataError(f"{name}:{line}: {rule}; this is not a pipeline file")


def parse_yaml(text: str, name: str) -> Any:
    """What ``text`` says in plain YAML: no tags, no aliases, no key twice, nothing deep or long.

    Args:
        text: a document or a single value.
        name: of the file, in messages.
    Raises:
        DataError: it is something else; name, line and what is wrong.
    """
    try:
        _check_tokens(text, name)
        return _Loader(text).get_single_data()
    except (ValueError, OverflowError) as error:
        # A date that is none, or more digits than a number can have.
        raise DataError(f"{name}: not a plain value: {error}; put it in quotes if it is text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        raise DataError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
