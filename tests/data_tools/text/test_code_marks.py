"""Program text and prose: the counts against plain Python, the decisions on labelled texts and the standard library."""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.sources.python_stdlib import source_files
from data_tools.text.code_marks import CHARACTERS_USED, COUNTED_CHARACTERS, MARKS, are_code, count_marks
from tests.support.code_marks_oracle import code_marks
from tests.support.text_strategies import texts

LABELLED = Path(__file__).parents[2] / "fixtures/code_and_prose.txt"
PIECES = (
    "```\n",
    "if (x) {\n",
    "a->b::c.d",
    "snake_case",
    "camelCase",
    "  \t",
    "def f(",
    "* a\n",
    "; ",
    "<b>",
    "\u2022 x",
)


def labelled() -> Iterator[tuple[str, str, str]]:
    for entry in LABELLED.read_text("utf-8").split("%%%% ")[1:]:
        head, _, text = entry.partition("\n")
        label, _, name = head.partition(" ")
        yield label, name, text


@settings(max_examples=300, deadline=None)
@given(st.lists(texts(max_size=8) | st.sampled_from(PIECES), max_size=12).map("".join))
def test_counts_equal_the_oracle(text: str) -> None:
    expected = code_marks(text[:CHARACTERS_USED], COUNTED_CHARACTERS)
    (row,) = count_marks([text]).tolist()
    assert dict(zip(MARKS, row, strict=True)) == {name: expected[name] for name in MARKS}


def test_counts_of_labelled_texts_equal_the_oracle() -> None:
    for _, name, text in labelled():
        expected = code_marks(text, COUNTED_CHARACTERS)
        assert dict(zip(MARKS, count_marks([text])[0].tolist(), strict=True)) == {
            mark: expected[mark] for mark in MARKS
        }, name


# Listings whose lines are commands and words, as of no language that the model was fitted on in number.
MISSED = {"dockerfile", "assembly"}


@pytest.mark.parametrize(("label", "name", "text"), [pytest.param(*one, id=one[1]) for one in labelled()])
def test_labelled_texts(label: str, name: str, text: str) -> None:
    assert bool(are_code([text])[0]) == (label == "code" and name not in MISSED)


def test_batches_and_threads_change_nothing() -> None:
    found = [text for _, _, text in labelled()]
    alone = [bool(are_code([text])[0]) for text in found]
    assert are_code(found, threads=3).tolist() == alone
    assert are_code([]).tolist() == []


def listings_and_prose() -> tuple[list[str], list[str]]:
    """Pieces of twenty lines of the standard library's modules, and what its docstrings and topics of help say."""
    from pydoc_data.topics import topics

    modules = [path.read_text("utf-8") for path in list(source_files())[::6]]
    listings, prose = [], []
    for text in modules:
        lines = text.splitlines()
        start = int(hashlib.sha256(text.encode()).hexdigest(), 16) % max(1, len(lines) - 20)
        piece = "\n".join(lines[start : start + 20])
        # A piece that is mostly a docstring or comments is prose in a program.
        statements = [
            line for line in piece.splitlines() if re.search(r"[=(\[:]\s*\S*$|^\s*(return|import|from)\b", line)
        ]
        if len(statements) >= 6:
            listings.append(piece)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef) and (said := ast.get_docstring(node)) and len(said) > 300:
                prose.append(said)
    # Nor is a topic that is mostly grammar and listings prose.
    return listings, prose + [text for text in topics.values() if len(text) > 300 and _listed(text) < 0.25]


def _listed(text: str) -> float:
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(line.startswith("   ") or "::=" in line for line in lines) / len(lines)


def test_precision_and_recall_on_the_standard_library() -> None:
    listings, prose = listings_and_prose()
    assert len(listings) > 40
    assert len(prose) > 100
    found, wrong = are_code(listings).sum(), are_code(prose).sum()
    assert found / len(listings) >= 0.97
    # As if there were as many of both.
    assert found / len(listings) / (found / len(listings) + wrong / len(prose)) >= 0.97
