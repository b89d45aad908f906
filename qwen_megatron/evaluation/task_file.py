"""Task files: what a benchmark asks, in how many shots, and how an answer is scored. YAML, without code."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Interval

from data_tools.settings.check import UNUSABLE, Location, checked
from data_tools.settings.nodes import line_of
from data_tools.settings.problems import Problems
from data_tools.settings.records import NonNegative, Rule, record
from data_tools.settings.words import closest
from data_tools.settings.yaml_text import YamlError, pairs, read_nodes, refused_tag, scalar
from qwen_megatron.errors import ConfigError

FOLDER = Path(__file__).parent / "tasks"
# The group's name with spaces, a field of tasks that have groups.
GROUP_WORDS = "group_words"
PLACE = re.compile(r"\{([a-z_A-Z][a-z_A-Z0-9]*)\}")

Kind = Literal["text", "value", "texts", "tools"]
Name = Annotated[str, Rule(lambda text: re.fullmatch(r"[a-z0-9][a-z0-9_-]*", text) is not None, "must be a plain name")]
FileName = Annotated[
    str,
    Rule(
        lambda text: re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*", text) is not None,
        "must be a path below the folder of --data",
    ),
]


@record
class Records:
    """Which records of a JSON Lines file are taken."""

    file: FileName
    """Below the folder of `--data`."""
    where: str | None = None
    """A field of numbers that chooses records. Default: all are taken."""
    first: int = 0
    """The smallest number that is taken."""
    last: int = 0
    """The largest number that is taken."""


@record
class TaskFile:
    """A benchmark."""

    name: Name
    """What results are filed under."""
    about: str
    """What it measures."""
    source: str
    """Where prompt, shots and scoring come from."""
    kind: Literal["choice", "answer", "code", "tools"]
    """choice: the likeliest of some continuations; answer: a completion that holds the answer; code: a completion that
    is run; tools: a call of a tool."""
    test: Records
    """The questions."""
    examples: Records | None = None
    """Questions with answers, for shots: the first of the same group, in the file's order."""
    shots: NonNegative = 0
    """Examples before a question, outside of chat."""
    fields: dict[str, Kind]
    """Fields that every record has: text, value (text or a number), texts (a list of texts), tools."""
    example_fields: dict[str, Kind] = field(default_factory=dict)
    """Fields that examples have besides."""
    group: str | None = None
    """Field that says which subject a record is of."""
    average: Literal["items", "groups"] = "items"
    """Whether every question counts the same, or every group."""
    header: str = ""
    """Text before the examples; `{field}` is the question's."""
    question: str
    """Text of a question; `{field}` stands for a field, anything else for itself."""
    answer: str = ""
    """Text of an example's answer, right after its question."""
    separator: str = "\n\n"
    """Text after an example's answer."""
    chat: str | None = None
    """What the user says in chat. Default: header and question."""
    only_chat: bool = False
    """Whether there is no other form."""
    choices: tuple[str, ...] = ()
    """Continuations that are compared, for kind choice; `answer` must give one of them."""
    scorer: Literal["letter", "gsm8k", "math", "answer_is", "number", "program", "react"]
    """How a completion is compared with what is expected."""
    target: str = ""
    """What is expected; a template."""
    program: str = ""
    """What is run, for kind code; `{completion}` is the model's."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, outside of chat."""
    max_new_tokens: Annotated[int, Interval(ge=1, le=1 << 20)] = 1
    """Tokens of a completion at most."""


def known_tasks() -> tuple[str, ...]:
    """Names of the task files that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def find_task(name: str) -> TaskFile:
    """A task by its name, or by the path of a file of the user's, which ends in .yaml.

    Raises:
        ConfigError: if there is none, or the file breaks rules: all at once.
    """
    if name.endswith((".yaml", ".yml")):
        return read_task(Path(name))
    if name not in known_tasks():
        raise ConfigError(
            f"--tasks={name}: no such task; did you mean {closest(name, known_tasks())}? Known are "
            f"{', '.join(known_tasks())}, lm-eval:NAME for a task of lm-evaluation-harness, and paths of task files "
            "(.yaml)"
        )
    return read_task(FOLDER / f"{name}.yaml")


def read_task(path: Path) -> TaskFile:
    """Reads and checks a task file.

    Raises:
        ConfigError: naming file, line, key and rule, all mistakes at once.
    """
    problems = Problems()
    try:
        node = read_nodes(path)
        if not isinstance(node, yaml.MappingNode):
            raise YamlError("must hold keys and values")
        value = plain(node)
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from error

    def place(location: Location) -> str:
        return f" ({path}:{line_of(node, location)})"

    task = checked(TaskFile, value, "", problems, place=place)
    if task is not UNUSABLE:
        problems.messages += [f"{path}: {message}" for message in broken_rules(task)]
    if problems.messages:
        raise ConfigError(problems.messages)
    assert isinstance(task, TaskFile)
    return task


def plain(node: yaml.Node) -> Any:
    """Scalars, lists and dicts of a node; texts may have several lines.

    Raises:
        YamlError: if it holds something else.
    """
    if refused_tag(node) is not None:
        raise YamlError(
            f"line {node.start_mark.line + 1}: the tag {refused_tag(node)} is not allowed; use plain values"
        )
    if isinstance(node, yaml.MappingNode):
        return {key: plain(item) for key, item, _ in pairs(node)}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node)


def broken_rules(task: TaskFile) -> list[str]:
    """Rules between the fields of a task that it breaks."""
    from qwen_megatron.evaluation.answers import MADE_FIELDS

    found = []
    known = {*task.fields, *MADE_FIELDS[task.scorer], *([GROUP_WORDS] if task.group else [])}
    templates = {"header": task.header, "question": task.question, "target": task.target, "chat": task.chat or ""}
    for key, text in templates.items():
        found += unknown_places(key, text, known)
    found += unknown_places("answer", task.answer, {*known, *task.example_fields})
    found += unknown_places("program", task.program, {*known, "completion"})
    for key, named in (("group", task.group), ("test.where", task.test.where)):
        if named is not None and named not in task.fields:
            found.append(f"{key}={named}: must be one of `fields`")
    if task.shots and (task.examples is None or not task.answer):
        found.append(f"shots={task.shots}: needs `examples` and `answer`")
    if (task.kind == "choice") != bool(task.choices):
        found.append(f"kind={task.kind}: `choices` belong to kind choice, which needs them")
    if (task.kind == "code") != bool(task.program):
        found.append(f"kind={task.kind}: `program` belongs to kind code, which needs it")
    if (task.kind == "tools") != (task.scorer == "react") or (task.kind == "code") != (task.scorer == "program"):
        found.append(f"scorer={task.scorer}: does not go with kind {task.kind}")
    if task.average == "groups" and task.group is None:
        found.append("average=groups: needs `group`")
    return found


def unknown_places(key: str, template: str, known: set[str]) -> list[str]:
    """Complaints about places of a template that no field fills."""
    names = [name for name in PLACE.findall(template) if name not in known]
    return [f"{key}: {{{name}}} is none of the fields {', '.join(sorted(known))}" for name in dict.fromkeys(names)]


def filled(template: str, values: dict[str, Any]) -> str:
    """A template with its places filled; values are not looked into again, lists become lines."""

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        return "\n".join(found) if isinstance(found, list) else str(found)

    return PLACE.sub(value, template)
