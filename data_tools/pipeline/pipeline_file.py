"""pipeline.yaml: what it may say, and what it means."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml

from data_tools.engine.runner import Runner
from data_tools.engine.task import Manifest
from data_tools.io.owned_paths import is_plain_name
from data_tools.settings.check import UNUSABLE
from data_tools.settings.nodes import read_record, written
from data_tools.settings.problems import Problems, SettingsError
from data_tools.settings.records import Rule, record
from data_tools.settings.words import closest, join_or
from data_tools.settings.yaml_text import YamlError, pairs, read_nodes, scalar
from data_tools.stages.read import ReadStage
from data_tools.stages.registry import NEEDS, STAGES, SampleStage

KINDS = tuple(STAGES)
# Their parts are corpora, not documents.
CORPUS_KINDS = ("tokenize", "mixture")
ALL, LAST = "all", "last"


class Stage(Protocol):
    """A function of the shards of the stage before it and of its own options."""

    def run(self, runner: Runner, folder: Path, inputs: Sequence[Manifest]) -> list[Manifest]:
        """Does what is not done yet; the manifests of all parts, in order."""
        ...


@record
class Head:
    """What a pipeline file says besides its stages."""

    output: Annotated[str, Rule(bool, "must be a path")]
    """Folder everything goes to."""
    max_bad: str | None = None
    """Limit of unreadable records, `100` or `0.1%`. Default: no limit."""
    keep_documents: Literal["all", "last"] | None = None
    """Which stages keep their documents: `all`, or the `last` before tokenization, others only until the next stage is
    finished. Default: all of this run, and what an earlier one removed stays away until a stage needs it."""


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
        name: of the file without its suffix, or of the one stage.
        output: the folder everything goes to.
        max_bad: limit of unreadable records, "100" or "0.1%"; None for no limit.
        stages: in order; the first is `read`.
        keep_documents: `ALL`, `LAST` or None; see `Head`.
    """

    name: str
    output: Path
    max_bad: str | None
    stages: tuple[NamedStage, ...]
    keep_documents: str | None = None

    @property
    def last_documents(self) -> int:
        """Number of the last stage that writes documents; -1 for none."""
        return max((number for number, one in enumerate(self.stages) if one.kind not in CORPUS_KINDS), default=-1)


def load_pipeline(path: Path) -> Pipeline:
    """Reads and checks a pipeline file.

    Raises:
        SettingsError: all mistakes at once, one line each: key, value, the rule it breaks, file and line.
    """
    problems = Problems()
    try:
        root = read_nodes(path)
        if not isinstance(root, yaml.MappingNode):
            raise SettingsError(f"{path}: must be a mapping with the keys output and stages")
        head = read_record(Head, root, "", str(path), problems, without=("stages",))
        stages = next((node for key, node, _ in pairs(root) if key == "stages"), None)
        if not isinstance(stages, yaml.SequenceNode) or not stages.value:
            problems.messages.append(f"stages: must be a list of at least one stage ({path})")
        read = _stages(stages.value if isinstance(stages, yaml.SequenceNode) else [], path, problems)
    except YamlError as error:
        raise SettingsError(f"{path}: {error}") from error
    if problems.messages:
        raise SettingsError(problems.messages)
    return Pipeline(
        name=path.stem,
        output=Path(head.output),
        max_bad=head.max_bad,
        stages=read,
        keep_documents=head.keep_documents,
    )


def _stages(entries: Sequence[yaml.Node], path: Path, problems: Problems) -> tuple[NamedStage, ...]:
    stages: list[NamedStage] = []
    names: set[str] = set()
    for number, entry in enumerate(entries):
        key, where = f"stages[{number}]", f" ({path}:{entry.start_mark.line + 1})"
        given = {name: node for name, node, _ in pairs(entry)} if isinstance(entry, yaml.MappingNode) else {}
        kind = _word(given.get("kind"))
        if kind not in STAGES:
            advice = f"; use {closest(kind, KINDS)}" if kind else ""
            shown = written(given.get("kind", entry))
            problems.add(f"{key}.kind", shown, f"must be {join_or(KINDS)}{advice}{where}")
            continue
        name = _word(given["name"]) if "name" in given else kind
        if not (name.replace("-", "").replace("_", "").isalnum() and is_plain_name(name)):
            problems.add(f"{key}.name", written(given["name"]), f"must be letters, digits, - and _{where}")
        if name in names:
            problems.add(f"{key}.name", name, f"is used twice; give each stage a name of its own{where}")
        names.add(name)
        for rule in _misplaced(kind, stages):
            problems.add(f"{key}.kind", kind, f"{rule}{where}")
        stage = read_record(STAGES[kind], entry, key, str(path), problems, without=("name", "kind"))
        if stage is not UNUSABLE:
            for rule in _pointless(stages, stage, kind):
                problems.add(f"{key}.kind", kind, f"{rule}{where}")
        stages.append(NamedStage(name, kind, stage))
    return tuple(stages)


def _word(node: yaml.Node | None) -> str:
    """The text of a scalar, "" for anything else."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) and scalar(node) is not None else ""


def _misplaced(kind: str, before: Sequence[NamedStage]) -> list[str]:
    """Rules of order that a stage of this kind breaks behind those before it."""
    rules = []
    if (kind == "read") != (not before):
        rules.append("is out of place; read comes first and only there")
    if kind in NEEDS and all(stage.kind != NEEDS[kind] for stage in before):
        rules.append(f"needs a stage {NEEDS[kind]} before it")
    last = before[-1].kind if before else ""
    if (last in CORPUS_KINDS) != (kind == "mixture"):
        rules.append("is out of place; tokenize and, after it, mixture come last")
    return rules


def _pointless(stages: Sequence[NamedStage], stage: Any, kind: str) -> list[str]:
    """Rules broken by stages before this one that would make it pointless, or are missing."""
    rules = []
    samples = [one.stage for one in stages if isinstance(one.stage, SampleStage)]
    if kind in ("exact_dedup", "fuzzy_dedup") and any(one.quality or one.cluster_size for one in samples):
        rules.append("would remove the copies that the stage sample before it makes; put it before that")
    if not isinstance(stage, SampleStage):
        return rules
    kept = {key for one in stages if isinstance(one.stage, ReadStage) for data in one.stage.inputs for key in data.keep}
    kinds = {one.kind for one in stages}
    if stage.quality and "quality" not in kinds | kept:
        rules.append("has bands of quality, but no stage quality before it gives scores")
    if stage.cluster_size and "exact_dedup" not in kinds and "cluster_size" not in kept:
        rules.append("has bands of cluster_size, but no stage exact_dedup before it counts them")
    return rules
