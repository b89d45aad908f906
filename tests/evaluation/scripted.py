"""A stand-in for a model, which answers what a test says; and questions for every task file, made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen_megatron.evaluation.language_model import Advance, TextModel
from qwen_megatron.inference.scoring import Score
from qwen_megatron.inference.vocabulary import QwenVocabulary

VOCABULARY = QwenVocabulary()


class ScriptedModel:
    """Completes each prompt with what a function says of its text, and finds one continuation of it likely.

    Attributes:
        asked: Texts of all prompts so far.
        stops: Stop texts of the last completion.
    """

    def __init__(self, answer: Callable[[str], str]):
        self.answer = answer
        self.asked: list[str] = []
        self.stops: Sequence[str] = ()

    def complete(
        self, prompts: Sequence[list[int]], max_new_tokens: int, stop: Sequence[str], is_chat: bool, advance: Advance
    ) -> list[str]:
        texts = [VOCABULARY.decode(prompt) for prompt in prompts]
        self.asked += texts
        self.stops = stop
        return [self.answer(text) for text in texts]

    def score(self, rows: Sequence[tuple[list[int], list[int]]], advance: Advance) -> list[Score]:
        contexts = [VOCABULARY.decode(context) for context, _ in rows]
        self.asked += contexts
        likely = [
            self.answer(context) == VOCABULARY.decode(new) for context, (_, new) in zip(contexts, rows, strict=True)
        ]
        return [Score(log_probability=float(right), is_greedy=right, num_tokens=1) for right in likely]


def text_model(answer: Callable[[str], str], **changed: Any) -> tuple[TextModel, ScriptedModel]:
    scripted = ScriptedModel(answer)
    return TextModel(scripted, VOCABULARY, **{"max_length": 4096, **changed}), scripted


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def choice(number: int, question: str = "question", answer: str = "answer") -> dict[str, Any]:
    """A question with four numbers to choose from, under the names that a benchmark has for question and answer."""
    return {
        "subject": "abstract_algebra",
        question: f"What is {number} + 1?",
        **{letter: number + at for at, letter in enumerate("ABCD")},
        answer: "B",
    }


TOOLS = [
    {
        "name_for_human": "Weather",
        "name_for_model": "weather",
        "description_for_model": "The weather of a city.",
        "parameters": [{"name": "city", "required": True}],
    },
    {
        "name_for_human": "Search",
        "name_for_model": "search",
        "description_for_model": "Looks things up.",
        "parameters": [],
    },
]

# File below the folder -> its records.
FILES: dict[str, list[dict[str, Any]]] = {
    "mmlu/test.jsonl": [choice(10)],
    "mmlu/dev.jsonl": [choice(number) for number in range(6)],
    "ceval/val.jsonl": [choice(10)],
    "ceval/dev.jsonl": [choice(number) for number in range(5)],
    "cmmlu/test.jsonl": [choice(10, "Question", "Answer")],
    "cmmlu/dev.jsonl": [choice(number, "Question", "Answer") for number in range(5)],
    "gsm8k/test.jsonl": [{"question": "A hen lays 2 eggs a day. In 9 days?", "answer": "2*9=<<2*9=18>>18\n#### 18"}],
    "gsm8k/train.jsonl": [
        {"question": f"How much is {number} and 1,000?", "answer": f"<<{number}+1000>>So.\n#### {1000 + number:,}"}
        for number in range(8)
    ],
    "math/test.jsonl": [{"problem": "Half of $3$?", "solution": r"It is $\boxed{\frac{3}{2}}$."}],
    "math/train.jsonl": [{"problem": f"${number}+1$?", "solution": rf"\boxed{{{number + 1}}}"} for number in range(4)],
    "HumanEval.jsonl": [
        {
            "task_id": "T/0",
            "prompt": 'def add(a, b):\n    """Adds."""\n',
            "entry_point": "add",
            "test": "def check(f):\n    assert f(1, 2) == 3\n",
        }
    ],
    "humanevalpack/python.jsonl": [
        {
            "task_id": "Python/0",
            "prompt": 'def add(a, b):\n    """Adds."""\n',
            "instruction": "Write a Python function `add(a, b)` that adds.",
            "entry_point": "add",
            "test": "def check(add):\n    assert add(1, 2) == 3\n\ncheck(add)",
        }
    ],
    "mbpp.jsonl": [
        {
            "task_id": number,
            "text": f"Write a function to add {number}.",
            "code": f"def add(x):\r\n  return x + {number}",
            "test_setup_code": "",
            "test_list": [f"assert add(1) == {1 + number}", f"assert add(2) == {2 + number}"],
        }
        for number in (1, 2, 3, 4, 5, 11, 510, 511)
    ],
    "bbh/test.jsonl": [
        {"subject": "boolean", "instruction": "Evaluate it.", "input": "not True is", "target": "False"},
        {"subject": "dates", "instruction": "Choose.", "input": "Today?\n(A) 1\n(B) 2", "target": "(B)"},
    ],
    "bbh/examples.jsonl": [
        {"subject": subject, "instruction": "", "input": f"q{n}", "target": "x", "solution": f"So the answer is x{n}."}
        for subject in ("boolean", "dates")
        for n in range(3)
    ],
    "math23k/test.jsonl": [{"original_text": "一半是多少？", "ans": "1(1/2)"}],
    "math401/test.jsonl": [{"query": "0.5*3=", "response": 1.5}],
    "react/test.jsonl": [
        {
            "query": "Is it raining in Oslo?",
            "tools": TOOLS,
            "response": 'Thought: I ask.\nAction: weather\nAction Input: {"city": "Oslo"}',
        },
        {"query": "Hello!", "tools": TOOLS, "response": "Thought: A greeting.\nFinal Answer: Hello!"},
    ],
    "react/released.jsonl": [
        {"prompt": "whole prompt", "response": 'Thought: I ask.\nAction: weather\nAction Input: {"city": "Oslo"}'}
    ],
}


def write_benchmarks(folder: Path) -> Path:
    """The files of all benchmarks."""
    for name, records in FILES.items():
        write_jsonl(folder / name, records)
    return folder
