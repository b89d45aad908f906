"""Dialogues and preference pairs of the running Python's own documentation: docstrings and the topics of pydoc.

Questions about functions, methods, classes and topics, answered by the first paragraph of what is written about them. A
pair prefers a thing's own docstring to another's; of the four about a thing one is a near miss: of the same class or
module, or of the same name elsewhere. What is held out is held out by thing: neither its question nor its docstring is
in the rest.

The licence of the texts is PSF-2.0; they are read where they are installed, never redistributed.
"""

import ast
import builtins
import hashlib
import inspect
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from data_tools.errors import DataError
from data_tools.io.atomic_file import atomic_output
from data_tools.sources.python_stdlib import source_files

# An answer: a paragraph of a few hundred tokens at most, and more than a word.
LONGEST_ANSWER, FEWEST_WORDS = 800, 4
# One thing in this many is held out; one in this many begins a dialogue of several turns.
HELD_OUT_SHARE, SEVERAL_TURNS_SHARE = 8, 4
# Pairs about a thing: of one alone a small model learns which docstrings are never rejected, not which one fits.
PAIRS_OF_A_THING = 4

_QUESTIONS = (
    "What does {name} do?",
    "What is {name} in Python?",
    "Explain the {kind} {name}.",
    "Describe {name} briefly.",
    "In Python, what is the {kind} {name} for?",
    "I found {name} in the library. What does it do?",
)
_TOPIC_QUESTIONS = (
    "What does Python's documentation say about {name}?",
    "Explain the topic {name} of the Python language.",
    "Tell me about {name} in Python.",
)
_FOLLOW_UPS = ("And {name}?", "What about {name}?", "Thanks. And what does {name} do?")


class Thing(NamedTuple):
    """Something that is documented."""

    module: str  # "" for topics
    name: str  # in its module: "Queue.put"
    kind: str  # function, method, class, exception or topic
    doc: str  # the answer

    @property
    def full_name(self) -> str:
        """With its module, unless it is one of the names that are there without an import."""
        return self.name if self.module in ("", "builtins") else f"{self.module}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class CollectedDocs:
    """File -> number of records written."""

    records: dict[str, int]


def collect_docs(folder: Path, root: Path | None = None) -> CollectedDocs:
    """Writes DIR/dialogues.jsonl, pairs.jsonl, prompts.jsonl, and of what is held out the same with -held-out.

    Dialogues and prompts are in the format messages, pairs are a prompt with chosen and rejected, and near_miss says
    how near. The same Python gives the same bytes.

    Args:
        folder: created if need be.
        root: the library's folder; that of the running Python if None.
    Raises:
        DataError: the Python at hand has no library sources.
        OSError: ``folder`` cannot be written to.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    if next(iter(source_files(root)), None) is None:
        raise DataError(f"{root}: no Python sources there; use a Python whose standard library is installed as files")
    folder.mkdir(parents=True, exist_ok=True)
    things = list(documented_things(root))
    records = {}
    for suffix, part in (
        ("", [thing for thing in things if not is_held_out(thing)]),
        ("-held-out", [thing for thing in things if is_held_out(thing)]),
    ):
        for name, made in (("dialogues", dialogues), ("pairs", pairs), ("prompts", prompts)):
            path = folder / f"{name}{suffix}.jsonl"
            records[path.name] = _write(path, made(part))
    return CollectedDocs(records=records)


def documented_things(root: Path | None = None) -> Iterator[Thing]:
    """What has a docstring of its own: of the built-in names, of the library's modules, and topics; no answer twice.

    Modules are parsed, never imported.
    """
    seen: set[str] = set()
    for thing in (*_built_in(), *_of_library(root or Path(sysconfig.get_path("stdlib"))), *_topics()):
        if thing.doc not in seen:
            seen.add(thing.doc)
            yield thing


def is_held_out(thing: Thing) -> bool:
    """Whether a thing belongs to what is not trained on."""
    return _draw("held out", thing) % HELD_OUT_SHARE == 0


def dialogues(things: Sequence[Thing]) -> Iterator[dict[str, Any]]:
    """A dialogue about each thing, and some of two or three turns about neighbours."""
    for number, thing in enumerate(things):
        yield {"messages": _turn(question(thing), thing.doc)}
        if _draw("several", thing) % SEVERAL_TURNS_SHARE == 0:
            last = number + 2 + _draw("how many", thing) % 2
            neighbours = [one for one in things[number + 1 : last] if one.module == thing.module]
            if neighbours:
                messages = _turn(question(thing), thing.doc)
                for one in neighbours:
                    messages += _turn(_chosen(_FOLLOW_UPS, "follow", one).format(name=one.full_name), one.doc)
                yield {"messages": messages}


def pairs(things: Sequence[Thing]) -> Iterator[dict[str, Any]]:
    """Pairs about each thing, the first a near miss where there is any; as many as there are others."""
    by_class: dict[tuple[str, str], list[Thing]] = defaultdict(list)
    by_name: dict[str, list[Thing]] = defaultdict(list)
    by_module: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        by_class[thing.module, thing.name.rpartition(".")[0]].append(thing)
        by_name[thing.name.rpartition(".")[2]].append(thing)
        by_module[thing.module].append(thing)
    for thing in things:
        owner, _, name = thing.name.rpartition(".")
        near = (by_name[name], by_class[thing.module, owner] if owner else [], by_module[thing.module])
        nearest = next((found for found in near if len(found) > 1), [])
        rejected = {thing.doc}
        for number in range(PAIRS_OF_A_THING):
            is_near = number == 0 and bool(nearest)
            other = _other(thing, nearest if is_near else things, number)
            if other is not None and other.doc not in rejected:
                rejected.add(other.doc)
                asked = {"prompt": question(thing), "chosen": thing.doc, "rejected": other.doc}
                yield {**asked, "near_miss": is_near}


def prompts(things: Sequence[Thing]) -> Iterator[dict[str, Any]]:
    """The question about each thing."""
    for thing in things:
        yield {"messages": [{"role": "user", "content": question(thing)}]}


def question(thing: Thing) -> str:
    """The question about a thing, the same wherever it is asked."""
    templates = _TOPIC_QUESTIONS if thing.kind == "topic" else _QUESTIONS
    return _chosen(templates, "question", thing).format(name=thing.full_name, kind=thing.kind)


def _turn(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _other(thing: Thing, candidates: Sequence[Thing], number: int) -> Thing | None:
    """Another of the candidates, for a thing's pair of a number."""
    start = _draw(f"other {number}", thing)
    for step in range(min(2, len(candidates))):
        found = candidates[(start + step) % len(candidates)]
        if found != thing:
            return found
    return None


def _chosen(templates: Sequence[str], purpose: str, thing: Thing) -> str:
    return templates[_draw(purpose, thing) % len(templates)]


def _draw(purpose: str, thing: Thing) -> int:
    """A number that depends on the thing's name and what it is for, and on nothing else."""
    text = f"{purpose}\n{thing.kind}\n{thing.full_name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _built_in() -> Iterator[Thing]:
    for name in sorted(vars(builtins)):
        value = vars(builtins)[name]
        if name.startswith("_") or not callable(value):
            continue
        is_class = isinstance(value, type)
        if is_class and issubclass(value, BaseException):
            yield from _thing("builtins", name, "exception", value.__doc__)
            continue
        yield from _thing("builtins", name, "class" if is_class else "function", value.__doc__)
        for method, inner in sorted(vars(value).items()) if is_class else ():
            if not method.startswith("_") and callable(inner):
                yield from _thing("builtins", f"{name}.{method}", "method", inner.__doc__)


def _of_library(root: Path) -> Iterator[Thing]:
    for path in source_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if any(part.startswith("_") for part in module.split(".")):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # Not Python of this version, or no text.
        yield from _in_body(module, "", tree.body)


def _in_body(module: str, owner: str, body: Iterable[ast.stmt]) -> Iterator[Thing]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        is_class = isinstance(node, ast.ClassDef)
        name = f"{owner}.{node.name}" if owner else node.name
        kind = "class" if is_class else "method" if owner else "function"
        yield from _thing(module, name, kind, ast.get_docstring(node))
        if is_class:
            yield from _in_body(module, name, node.body)


def _topics() -> Iterator[Thing]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return  # Some distributions pack it apart.
    for name, text in sorted(topics.items()):
        # Headings stand above lines of these characters.
        paragraphs = [
            one for one in text.split("\n\n") if one.strip() and not one.rstrip().endswith(("**", "==", "--"))
        ]
        yield from _thing("", name, "topic", paragraphs[0] if paragraphs else None)


def _thing(module: str, name: str, kind: str, doc: str | None) -> Iterator[Thing]:
    """The thing, if its first paragraph is an answer."""
    answer = inspect.cleandoc(doc or "").partition("\n\n")[0].strip()
    if ">>>" not in answer and len(answer) <= LONGEST_ANSWER and len(answer.split()) >= FEWEST_WORDS:
        yield Thing(module, name, kind, answer)


def _write(path: Path, records: Iterable[dict[str, Any]]) -> int:
    number = 0
    with atomic_output(path) as stream:
        for record in records:
            stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            number += 1
    return number
