"""Small chat corpora: dialogues of bytes, made of docstrings, and preferences that follow a rule."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from data_tools.chat.chat_writer import write_chat_corpus
from data_tools.chat.chatml import ChatML, Message
from data_tools.chat.dialogue import dialogue_of
from data_tools.chat.rendered import Rendered, rendered
from data_tools.chat.rendering import render
from data_tools.corpus.sidecar import DIALOGUES, PAIRS
from data_tools.sources.python_stdlib import source_files

# ASCII, then the two control tokens, then an end of document.
START_OF_TURN, END_OF_TURN, END = 128, 129, 130
VOCABULARY = 131
BYTES = ChatML(lambda text: [min(code, 127) for code in text.encode()], START_OF_TURN, END_OF_TURN)


@cache
def documented(count: int) -> tuple[tuple[str, str], ...]:
    """Names of functions of the standard library and how their docstrings begin, no name twice."""
    found: dict[str, str] = {}
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and len(found) < count and 3 < len(node.name) < 12:
                said = (ast.get_docstring(node) or "").partition("\n")[0]
                if len(said) > 12 and said.isascii():
                    found.setdefault(node.name, said[:24])
        if len(found) >= count:
            return tuple(found.items())
    raise AssertionError(f"{inspect.__file__}: the standard library documents fewer functions")


def documentation(count: int) -> list[Rendered]:
    """Dialogues of bytes: what a function does, as its docstring says."""
    return [
        render(dialogue_of([Message(role="user", content=name), Message(role="assistant", content=said)]), BYTES)
        for name, said in documented(count)
    ]


def write_dialogues(prefix: Path, dialogues: Sequence[Rendered], kind: str = DIALOGUES) -> Path:
    """A corpus of bytes."""
    write_chat_corpus(prefix, dialogues, kind=kind, end_of_turn=END_OF_TURN, end_of_document=END)
    return prefix


def random_dialogues(count: int, longest: int, vocab_size: int, seed: int = 0) -> list[Rendered]:
    """Dialogues of random tokens, half of them targets; none ends a turn."""
    generator = np.random.default_rng(seed)
    return [
        Rendered(
            tokens=generator.integers(0, vocab_size, size=length).astype(np.int32),
            targets=np.append(generator.random(length - 1) < 0.5, True),
        )
        for length in generator.integers(3, longest + 1, size=count)
    ]


def preferences(count: int, vocab_size: int, length: int, seed: int = 0) -> Iterator[Rendered]:
    """Chosen and rejected dialogue of each pair in turn: only the better answer has tokens below an eighth of all.

    The two highest ids begin and end turns.
    """
    generator = np.random.default_rng(seed)
    start, end = vocab_size - 2, vocab_size - 1
    for _ in range(count):
        question = generator.integers(0, vocab_size - 2, size=length // 3).tolist()
        answers = [generator.integers(0, vocab_size - 2, size=length // 2) for _ in range(2)]
        # The better one gets a few liked tokens, at random places.
        places = generator.choice(length // 2, size=3, replace=False)
        answers[0][places] = generator.integers(0, vocab_size // 8, size=3)
        answers[1][answers[1] < vocab_size // 8] += vocab_size // 2
        for answer in answers:
            tokens = [start, *question, end, start, *answer.tolist(), end]
            targets = [False] * (len(question) + 3) + [True] * (len(answer) + 1)
            yield rendered(tokens, targets)


def write_preferences(prefix: Path, count: int, vocab_size: int, length: int, seed: int = 0) -> Path:
    """A corpus of pairs."""
    write_chat_corpus(
        prefix,
        preferences(count, vocab_size, length, seed),
        kind=PAIRS,
        end_of_turn=vocab_size - 1,
        end_of_document=0,
    )
    return prefix
