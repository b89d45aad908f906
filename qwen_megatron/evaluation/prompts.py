"""Questions to prompts: shots before a plain question, or what a user says in chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_megatron.errors import DataError
from qwen_megatron.evaluation.answers import UnusableRecord, check_target, made_fields
from qwen_megatron.evaluation.records import Question, read_questions
from qwen_megatron.evaluation.task_file import GROUP_WORDS, TaskFile, filled


@dataclass(frozen=True)
class Item:
    """A question as a model is asked it.

    Attributes:
        place: `file:line` of its record.
        group: Its subject; empty where the task has none.
        text: The prompt; in chat, what the user says.
        target: What is expected.
        values: The record's fields and those made of them.
    """

    place: str
    group: str
    text: str
    target: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """A task with its questions, ready to be asked.

    Attributes:
        task: The task file.
        shots: Examples before each question.
        is_chat: Whether the questions are asked in chat.
        items: In the file's order.
        num_questions: Of the whole benchmark; more than there are items where a limit was given.
    """

    task: TaskFile
    shots: int
    is_chat: bool
    items: tuple[Item, ...]
    num_questions: int


def prepare(
    task: TaskFile, folder: Path, *, shots: int | None = None, is_chat: bool = False, limit: int | None = None
) -> Exam:
    """Reads a task's questions and writes its prompts.

    Args:
        task: The task file.
        folder: Of the JSON Lines files.
        shots: Examples before each question; None for the task file's number. In chat there are none.
        is_chat: Whether the questions are asked in chat.
        limit: Questions that are asked at most, the first; of each group where there are groups.
    Raises:
        DataError: naming file, line and rule: of a broken record, or where a group has too few examples.
    """
    is_chat = is_chat or task.only_chat
    count = 0 if is_chat else task.shots if shots is None else shots
    questions = [made(task, question) for question in read_questions(folder, task.test, task.fields)]
    examples = read_examples(task, folder) if count else {}
    chosen = limited(task, questions, limit)
    items = []
    for place, values in chosen:
        before = examples.get(group_of(task, values), [])
        if len(before) < count:
            assert task.examples is not None
            where = f" of {task.group} {group_of(task, values)!r}" if task.group else ""
            raise DataError(
                f"{folder / task.examples.file}: holds {len(before)} examples{where}, {task.name} takes {count}; add "
                f"examples, or say --shots {len(before)}"
            )
        text = chat_text(task, values) if is_chat else plain_text(task, values, before[:count])
        if not text.strip():
            raise DataError(f"{place}: its prompt has no text; mend or remove the record")
        items.append(Item(place, group_of(task, values), text, filled(task.target, values), values))
    return Exam(task, count, is_chat, tuple(items), len(questions))


def read_examples(task: TaskFile, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Group -> fields of its examples, in the file's order.

    Raises:
        DataError: if the task file names none, or a record is broken.
    """
    if task.examples is None:
        raise DataError(f"{task.name}: its task file names no examples; say --shots 0")
    found: dict[str, list[dict[str, Any]]] = {}
    for question in read_questions(folder, task.examples, {**task.fields, **task.example_fields}):
        values = made(task, question)[1]
        found.setdefault(group_of(task, values), []).append(values)
    return found


def made(task: TaskFile, question: Question) -> tuple[str, dict[str, Any]]:
    """Place and fields of a record, those of the scorer among them.

    Raises:
        DataError: if the scorer cannot use the record.
    """
    values = dict(question.values)
    if task.group is not None:
        values[GROUP_WORDS] = str(values[task.group]).replace("_", " ").strip()
    try:
        values |= made_fields(task.scorer, values)
        check_target(task.scorer, filled(task.target, values), task.choices)
    except UnusableRecord as error:
        raise DataError(f"{question.place}: {error}") from error
    return question.place, values


def limited(
    task: TaskFile, questions: Sequence[tuple[str, dict[str, Any]]], limit: int | None
) -> list[tuple[str, dict[str, Any]]]:
    """The first questions, of each group."""
    if limit is None:
        return list(questions)
    counts: dict[str, int] = {}
    chosen = []
    for place, values in questions:
        group = group_of(task, values)
        counts[group] = counts.get(group, 0) + 1
        if counts[group] <= limit:
            chosen.append((place, values))
    return chosen


def group_of(task: TaskFile, values: dict[str, Any]) -> str:
    """Name of a record's group; empty where the task has none."""
    return str(values[task.group]) if task.group is not None else ""


def plain_text(task: TaskFile, values: dict[str, Any], examples: Sequence[dict[str, Any]]) -> str:
    """Header, examples with their answers, and the question."""
    before = [filled(task.question + task.answer, example) + task.separator for example in examples]
    return "".join([filled(task.header, values), *before, filled(task.question, values)])


def chat_text(task: TaskFile, values: dict[str, Any]) -> str:
    """What the user says."""
    return filled(task.header + task.question if task.chat is None else task.chat, values)
