"""Asks a model the questions of a task and scores its answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from qwen_megatron.evaluation.answers import code_of_reply, is_correct
from qwen_megatron.evaluation.chat import chat_ids
from qwen_megatron.evaluation.language_model import Advance, TextModel, unseen
from qwen_megatron.evaluation.prompts import Exam, Item
from qwen_megatron.evaluation.react import score_call
from qwen_megatron.evaluation.sandbox import Limits, run_program
from qwen_megatron.evaluation.task_file import filled
from qwen_megatron.inference.vocabulary import Vocabulary

# What a task's first metric is called; it is the one that stands in tables.
MAIN_METRIC = {"choice": "accuracy", "answer": "accuracy", "code": "pass@1", "tools": "tool selection"}


@dataclass(frozen=True)
class Answer:
    """What a model answered to one question.

    Attributes:
        item: The question.
        completion: As given; of a choice between continuations, the one that was likelier.
        scores: Metric -> 0 to 1; a metric that does not apply to this question is left out.
        note: Why a program failed; empty otherwise.
    """

    item: Item
    completion: str
    scores: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class ExamResult:
    """A task's answers.

    Attributes:
        exam: What was asked.
        answers: In the order of the questions.
        num_cut: Prompts that were longer than the model reads and lost their beginning.
        limits: That programs ran under, if any did.
    """

    exam: Exam
    answers: tuple[Answer, ...]
    num_cut: int = 0
    limits: Limits | None = None


def sit(
    exam: Exam, model: TextModel, limits: Limits | None, *, judges: bool = True, advance: Advance = unseen
) -> ExamResult:
    """Asks all questions.

    Args:
        exam: A task with its questions.
        model: Is asked.
        limits: Of generated programs; None if none may be run.
        judges: Whether completions are scored; of several ranks that ask together, one does.
        advance: Told how many questions are answered.
    Raises:
        ConfigError: if completions leave no room for prompts.
        DataError: if the chat form is asked for, and the vocabulary has no marks of ChatML.
        PlatformError: if programs cannot be confined here.
        ValueError: if the task needs programs to be run, and none may.
    """
    task = exam.task
    if task.kind == "code" and limits is None:
        raise ValueError("generated code is not run unless it is allowed")
    cut_before = model.num_cut
    prompts = [prompt_ids(exam, item, model.vocabulary) for item in exam.items]
    if task.kind == "choice" and not exam.is_chat:
        answers = choose(exam, prompts, model, advance)
    else:
        # A turn in chat ends where the model ends it.
        stop = () if exam.is_chat and task.kind != "tools" else task.stop
        completions = model.complete(prompts, task.max_new_tokens, stop, is_chat=exam.is_chat, advance=advance)
        answers = judged(exam, completions, model.vocabulary, limits) if judges else []
    return ExamResult(exam, tuple(answers), model.num_cut - cut_before, limits if task.kind == "code" else None)


def prompt_ids(exam: Exam, item: Item, vocabulary: Vocabulary) -> list[int]:
    """Token ids of a prompt, in the exam's form."""
    return chat_ids(vocabulary, [("user", item.text)]) if exam.is_chat else vocabulary.encode(item.text)


def choose(exam: Exam, prompts: Sequence[list[int]], model: TextModel, advance: Advance) -> list[Answer]:
    """Takes the likeliest of the task's continuations, the first of equals."""
    choices = [model.vocabulary.encode(choice) for choice in exam.task.choices]
    cut_before, size = model.num_cut, len(choices)
    scores = model.score([(prompt, choice) for prompt in prompts for choice in choices], advance=advance)
    # Each prompt was given once for each choice.
    model.num_cut = cut_before + (model.num_cut - cut_before) // size
    answers = []
    for number, item in enumerate(exam.items):
        found = [score.log_probability for score in scores[number * size : (number + 1) * size]]
        choice = exam.task.choices[found.index(max(found))].strip()
        answers.append(Answer(item, choice, {"accuracy": float(choice == item.target.strip())}))
    return answers


def judged(exam: Exam, completions: Sequence[str], vocabulary: Vocabulary, limits: Limits | None) -> list[Answer]:
    """Scores completions; programs run side by side, one for each processor."""
    pairs = list(zip(exam.items, completions, strict=True))
    if limits is None or exam.task.kind != "code":
        return [judge(exam, item, completion, vocabulary) for item, completion in pairs]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        outcomes = pool.map(lambda pair: run_program(program_of(exam, *pair), limits), pairs)
        return [
            Answer(item, completion, {"pass@1": float(outcome.passed)}, outcome.reason)
            for (item, completion), outcome in zip(pairs, outcomes, strict=True)
        ]


def program_of(exam: Exam, item: Item, completion: str) -> str:
    """The program of a completion with its tests."""
    code = code_of_reply(completion) if exam.is_chat else completion
    return filled(exam.task.program, {**item.values, "completion": code})


def judge(exam: Exam, item: Item, completion: str, vocabulary: Vocabulary) -> Answer:
    """Scores a completion that is no program."""
    if exam.task.kind == "tools":
        return Answer(item, completion, tool_scores(completion, item.target, vocabulary))
    right = is_correct(exam.task.scorer, completion, item.target, exam.task.choices)
    return Answer(item, completion, {"accuracy": float(right)})


def tool_scores(completion: str, target: str, vocabulary: Vocabulary) -> dict[str, float]:
    """Metrics of a call of a tool; the words of ROUGE are the vocabulary's tokens."""

    def words(text: str) -> list[str]:
        return " ".join(vocabulary.decode([token]) for token in vocabulary.encode(text)).split()

    score = score_call(completion, target, words)
    found: dict[str, Any] = {
        "tool selection": score.selection,
        "tool input rouge-l": score.rouge_l,
        "false positives": score.false_positive,
    }
    return {name: float(value) for name, value in found.items() if value is not None}
