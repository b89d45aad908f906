"""Asks a model the questions of a task and scores its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_megatron.evaluation.answers import code_of_reply, is_correct
from qwen_megatron.evaluation.codec import Codec, chat_ids
from qwen_megatron.evaluation.language_model import Advance, TextModel
from qwen_megatron.evaluation.prompts import Exam, Item
from qwen_megatron.evaluation.react import score_call
from qwen_megatron.evaluation.sandbox import Limits, run_program
from qwen_megatron.evaluation.task_file import filled

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
    """

    exam: Exam
    answers: tuple[Answer, ...]
    num_cut: int = 0
    limits: Limits | None = field(default=None)


def sit(exam: Exam, model: TextModel, limits: Limits | None, advance: Advance = lambda amount: None) -> ExamResult:
    """Asks all questions.

    Args:
        exam: A task with its questions.
        model: Is asked.
        limits: Of generated programs; None if none may be run.
        advance: Told how many questions are answered.
    Raises:
        DataError: if the chat form is asked for, and the vocabulary has no tokens of ChatML.
        PlatformError: if programs cannot be confined here.
        ValueError: if the task needs programs to be run, and none may.
    """
    if exam.task.kind == "code" and limits is None:
        raise ValueError("generated code is not run unless it is allowed")
    cut_before = model.num_cut
    prompts = [prompt_ids(exam, item, model.codec) for item in exam.items]
    if exam.task.kind == "choice" and not exam.is_chat:
        answers = choose(exam, prompts, model, advance)
    else:
        # A turn in chat ends where the model ends it.
        stop = () if exam.is_chat and exam.task.kind != "tools" else exam.task.stop
        completions = model.complete(prompts, exam.task.max_new_tokens, stop, advance)
        answers = [
            judge(exam, item, completion, model.codec, limits)
            for item, completion in zip(exam.items, completions, strict=True)
        ]
    return ExamResult(exam, tuple(answers), model.num_cut - cut_before, limits if exam.task.kind == "code" else None)


def prompt_ids(exam: Exam, item: Item, codec: Codec) -> list[int]:
    """Token ids of a prompt, in the exam's form."""
    return chat_ids(codec, [("user", item.text)]) if exam.is_chat else codec.encode(item.text)


def choose(exam: Exam, prompts: Sequence[list[int]], model: TextModel, advance: Advance) -> list[Answer]:
    """Takes the likeliest of the task's continuations, the first of equals."""
    choices = [model.codec.encode(choice) for choice in exam.task.choices]
    rows = [(prompt, choice) for prompt in prompts for choice in choices]
    cut_before = model.num_cut
    scores = model.score(rows, lambda amount: None)
    # Each prompt was given once for each choice.
    model.num_cut = cut_before + (model.num_cut - cut_before) // len(choices)
    answers = []
    for number, item in enumerate(exam.items):
        found = [row.log_probability for row in scores[number * len(choices) : (number + 1) * len(choices)]]
        choice = exam.task.choices[found.index(max(found))].strip()
        answers.append(Answer(item, choice, {"accuracy": float(choice == item.target.strip())}))
        advance(1)
    return answers


def judge(exam: Exam, item: Item, completion: str, codec: Codec, limits: Limits | None) -> Answer:
    """Scores a completion."""
    task = exam.task
    if task.kind == "code":
        assert limits is not None
        code = code_of_reply(completion) if exam.is_chat else completion
        outcome = run_program(filled(task.program, {**item.values, "completion": code}), limits)
        return Answer(item, completion, {"pass@1": float(outcome.passed)}, outcome.reason)
    if task.kind == "tools":
        return Answer(item, completion, tool_scores(completion, item.target, codec))
    right = is_correct(task.scorer, completion, item.target, task.choices)
    return Answer(item, completion, {"accuracy": float(right)})


def tool_scores(completion: str, target: str, codec: Codec) -> dict[str, float]:
    """Metrics of a call of a tool; the words of ROUGE are the vocabulary's tokens."""

    def words(text: str) -> list[str]:
        return " ".join(codec.decode([token]) for token in codec.encode(text)).split()

    score = score_call(completion, target, words)
    found: dict[str, Any] = {
        "tool selection": score.selection,
        "tool input rouge-l": score.rouge_l,
        "false positives": score.false_positive,
    }
    return {name: float(value) for name, value in found.items() if value is not None}
