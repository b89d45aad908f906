"""Calls of tools in the ReAct format: the prompt that offers them, the call in an answer, and how it is scored.

Source: Qwen Technical Report (arXiv 2309.16609), section 3.4 and appendix; the benchmark's released files. ReAct is Yao
et al. 2022 (arXiv 2210.03629).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.chat.react import ACTION, ACTION_INPUT, OBSERVATION, Tool, tool_names, tool_texts

ALL_TOOLS, TOOL_NAMES = "tool_texts", "tool_names"
TOOL_KEYS = ("name_for_model", "name_for_human", "description_for_model", "parameters")

# Splits a text into the words that ROUGE compares.
Words = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: Of the tool, in lower case.
        arguments: JSON with sorted keys; empty if they were no JSON.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class CallScore:
    """How an answer compares with what was expected.

    Attributes:
        is_called_for: Whether a tool had to be called at all.
        selection: Whether the right tool was called; None where none had to be.
        rouge_l: F-measure of the arguments' longest common subsequence; None where none had to be.
        false_positive: Whether one was called that had not to be; None where one had to be.
    """

    is_called_for: bool
    selection: bool | None
    rouge_l: float | None
    false_positive: bool | None


def tool_fields(record: Mapping[str, Any]) -> dict[str, str]:
    """Texts that a prompt describes a record's tools with; none where the record has no tools.

    Args:
        record: `tools` is a list of objects with the four keys of the paper's format.
    """
    if "tools" not in record:
        return {ALL_TOOLS: "", TOOL_NAMES: ""}
    tools = [
        Tool(
            name=str(tool["name_for_model"]),
            human_name=str(tool["name_for_human"]),
            description=str(tool["description_for_model"]),
            parameters=json.dumps(tool["parameters"], ensure_ascii=False),
        )
        for tool in record["tools"]
    ]
    return {ALL_TOOLS: tool_texts(tools), TOOL_NAMES: tool_names(tools)}


def call_in(text: str) -> Call | None:
    """The first call of an answer; None if there is none."""
    text = f"\n{text}\n"
    _, found, rest = text.partition(ACTION)
    if not found:
        return None
    name, _, rest = rest.partition(ACTION_INPUT)
    arguments = rest.partition(OBSERVATION)[0].strip()
    try:
        # NaN and Infinity are no JSON, and no tool takes them.
        value = json.loads(arguments, parse_constant=_no_constant)
        arguments = json.dumps(value, ensure_ascii=False, sort_keys=True)
    except (ValueError, RecursionError):
        arguments = ""
    return Call(name.strip().partition("\n")[0].strip().lower(), arguments)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def score_call(answer: str, expected: str, words: Words) -> CallScore:
    """Compares an answer with the expected one.

    Args:
        answer: Of the model.
        expected: An answer in the same format; without an action if no tool must be called.
        words: Splits the arguments.
    """
    wanted, made = call_in(expected), call_in(answer)
    if wanted is None:
        return CallScore(False, None, None, made is not None)
    if made is None:
        return CallScore(True, False, 0.0, None)
    return CallScore(True, made.name == wanted.name, rouge_l(words(made.arguments), words(wanted.arguments)), None)


def rouge_l(found: Sequence[str], expected: Sequence[str]) -> float:
    """F-measure of the longest common subsequence.

    Source: Lin 2004, ROUGE-L with beta 1.
    """
    if not found or not expected:
        return 0.0
    lengths = [0] * (len(expected) + 1)
    for word in found:
        diagonal = 0
        for at, other in enumerate(expected, start=1):
            above = lengths[at]
            lengths[at] = diagonal + 1 if word == other else max(above, lengths[at - 1])
            diagonal = above
    common = lengths[-1]
    return 2 * common / (len(found) + len(expected))
