"""Dialogues and pairs of Python's own documentation, from a small library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.chat.formats import Reading, dialogues_in
from data_tools.cli import main
from data_tools.errors import DataError
from data_tools.sources import python_docs
from data_tools.sources.python_docs import (
    LONGEST_ANSWER,
    Thing,
    collect_docs,
    documented_things,
    is_held_out,
    pairs,
    question,
)
from data_tools.sources.python_stdlib import source_files

MODULE = '''
"""A module."""
def plain(x):
    """Return the thing that is plain.

    More of it.
    """
def _hidden():
    """Never to be asked about at all."""
def short():
    """Too short."""
def example():
    """Shown by >>> example() in a shell."""
def same():
    """Return the thing that is plain."""
class Box:
    """A box that holds many things."""
    async def put(self):
        """Put one more thing into it."""
    class Inner:
        """A box in another box, deeper."""
        def put(self):
            """Put it where nobody sees it."""
'''
FILES = ("dialogues", "pairs", "prompts")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module by hand, one that is no Python, and real ones."""
    root = tmp_path_factory.mktemp("library")
    (root / "box").mkdir()
    (root / "box" / "__init__.py").write_text(MODULE)
    (root / "broken.py").write_text("def (")
    (root / "long.py").write_text(f'def long():\n    """{"word " * 300}"""\n')
    for path in source_files():
        if path.name in ("queue.py", "textwrap.py", "shutil.py", "pathlib.py"):
            (root / path.name).write_bytes(path.read_bytes())
    return root


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_things_are_what_has_an_answer_of_its_own(library: Path) -> None:
    things = list(documented_things(library))
    found = {thing.full_name: thing for thing in things}
    assert found["box.plain"] == Thing("box", "plain", "function", "Return the thing that is plain.")
    assert found["box.Box.put"].kind == "method"
    assert found["box.Box.Inner.put"].doc == "Put it where nobody sees it."
    assert found["ValueError"].kind == "exception"
    assert found["str.strip"].kind == "method"
    assert found["pathlib.Path.mkdir"].doc == "Create a new directory at this given path."
    assert not {"box._hidden", "box.short", "box.example", "box.same", "long.long"} & set(found)
    assert all(len(thing.doc) <= LONGEST_ANSWER for thing in things)
    assert max(Counter(thing.doc for thing in things).values()) == 1
    topics = [thing for thing in things if thing.kind == "topic"]
    assert len(topics) > 50
    assert not [thing for thing in topics if "****" in thing.doc or "====" in thing.doc]


def test_questions_differ_and_name_the_thing(library: Path) -> None:
    things = list(documented_things(library))
    assert all(thing.full_name in question(thing) for thing in things)
    assert len({question(thing).replace(thing.full_name, "").replace(thing.kind, "") for thing in things}) >= 9


def test_pairs_reject_other_docstrings_and_a_quarter_are_near(library: Path) -> None:
    things = list(documented_things(library))
    made = list(pairs(things))
    assert 3.5 * len(things) < len(made) <= 4 * len(things)
    by_doc = {thing.doc: thing for thing in things}
    assert len({(one["prompt"], one["rejected"]) for one in made}) == len(made), "no pair twice"
    for one in made:
        thing, other = by_doc[one["chosen"]], by_doc[one["rejected"]]
        assert one["prompt"] == question(thing)
        assert other != thing
        if one["near_miss"]:
            assert other.module == thing.module or other.name.split(".")[-1] == thing.name.split(".")[-1]
    share = sum(one["near_miss"] for one in made) / len(made)
    assert 0.15 < share < 0.35
    assert list(pairs([things[0]])) == []


def test_what_is_held_out_is_in_nothing_else(library: Path, tmp_path: Path) -> None:
    collected = collect_docs(tmp_path / "a", library)
    things = list(documented_things(library))
    held_out = {thing.doc for thing in things if is_held_out(thing)}
    assert 0.05 < len(held_out) / len(things) < 0.2
    texts: dict[str, set[str]] = {}
    for suffix in ("", "-held-out"):
        texts[suffix] = set()
        for name in FILES:
            made = records(tmp_path / "a" / f"{name}{suffix}.jsonl")
            assert len(made) == collected.records[f"{name}{suffix}.jsonl"]
            for one in made:
                spoken = [message["content"] for message in one.get("messages", [])]
                texts[suffix] |= {*spoken, *(one[key] for key in ("prompt", "chosen", "rejected") if key in one)}
    # "And x?" may be asked in either.
    assert not [text for text in texts[""] & texts["-held-out"] if text in held_out or text[0] not in "AWT"]
    assert held_out <= texts["-held-out"]
    turns = Counter(len(one["messages"]) for one in records(tmp_path / "a" / "dialogues.jsonl"))
    assert turns[2] > turns[4] > 0
    assert turns[6] > 0


def test_the_same_python_gives_the_same_bytes_that_are_read(library: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        collect_docs(tmp_path / name, library)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        kind = path.name.split("-")[0].removesuffix(".jsonl")
        for one in records(path):
            assert len(list(dialogues_in(one, Reading(kind=kind)))) == 1


def test_the_library_that_is_installed_has_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 dialogues and 200 pairs that are held out; one module in twelve is parsed, which takes time."""
    monkeypatch.setattr(python_docs, "source_files", lambda root: list(source_files(root))[::12])
    assert main(["collect-docs", "--output", str(tmp_path / "docs")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    counts = {path.name: path.read_bytes().count(b"\n") for path in (tmp_path / "docs").iterdir()}
    fixed = sum(thing.module in ("", "builtins") for thing in documented_things(tmp_path))
    assert fixed + 12 * (counts["dialogues.jsonl"] - fixed) >= 2000
    assert 12 * (counts["pairs-held-out.jsonl"] - fixed / 8) >= 200


def test_a_python_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Python sources there; use a Python whose"):
        collect_docs(tmp_path / "docs", tmp_path)
    assert not (tmp_path / "docs").exists()
