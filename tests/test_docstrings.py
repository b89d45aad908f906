"""Docstrings say first what a thing does: every public module, class, function and method has one that begins so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_tools", "qwen_megatron")
# Sections, which come after the sentence; and "As `other` ...", which sends the reader elsewhere.
NO_BEGINNING = ("Raises", "Args", "Returns", "Yields", "Attributes", "As `")
ENDS = (".", ":", "?", "!")

Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Sources = dict[str, ast.Module]


def sources() -> Sources:
    """Syntax trees of both packages by path."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def public(tree: ast.Module, path: str) -> Iterator[tuple[str, Node, ast.ClassDef | None]]:
    """(name, node, class it is a method of) of the module and of everything public in it."""
    yield path, tree, None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node, None
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
                    yield f"{node.name}.{member.name}", member, node


def inherits(method: str, holder: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a base class says what the method does: one of ours by its docstring, a library's by its manual."""
    for base in holder.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name in ("Protocol", "Generic", "NamedTuple", "Exception", "Enum", "StrEnum"):
            continue
        ours = classes.get(name)
        if ours is None:
            return True
        for member in ours.body:
            if isinstance(member, ast.FunctionDef) and member.name == method and ast.get_docstring(member):
                return True
        if inherits(method, ours, classes):
            return True
    return False


def problems(trees: Sources) -> Iterator[str]:
    """What is wrong with docstrings, by file and line."""
    classes = {node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for path, tree in trees.items():
        for name, node, holder in public(tree, path):
            place = f"{path}:{getattr(node, 'lineno', 1)}: {name}"
            text = ast.get_docstring(node)
            if text is None:
                if holder is None or not inherits(name.rpartition(".")[2], holder, classes):
                    yield f"{place} has no docstring"
                continue
            line = text.partition("\n")[0].strip()
            if line.startswith(NO_BEGINNING):
                yield f"{place} begins with {line.split()[0]!r}, not with what it does"
            elif not line.endswith(ENDS):
                yield f"{place}: its first line is no whole sentence"


def test_docstrings_say_what_things_do() -> None:
    trees = sources()
    assert len(trees) > 200
    found = list(problems(trees))
    assert not found, "\n".join(found)


GOOD = '"""A module."""\nclass A:\n    """A thing."""\n    def f(self):\n        """Does it."""\n'
BAD = {
    "no module docstring": GOOD.removeprefix('"""A module."""\n'),
    "no class docstring": GOOD.replace('    """A thing."""\n', ""),
    "no method docstring": GOOD.replace('"""Does it."""', "pass"),
    "no function docstring": GOOD + "def g():\n    pass\n",
    "begins with Raises": GOOD.replace("Does it.", "Raises:\n    E: always.\n"),
    "begins with Raises in a sentence": GOOD.replace("Does it.", "Raises E."),
    "begins with Args": GOOD.replace("Does it.", "Args:\n    x: it."),
    "begins with Returns": GOOD.replace("Does it.", "Returns it."),
    "sends elsewhere": GOOD.replace("Does it.", "As `g`, but better."),
    "no end": GOOD.replace("Does it.", "Does it"),
    "runs over the line": GOOD.replace("Does it.", "Does this and\n    that."),
    "base without a docstring": GOOD
    + 'class B:\n    """B."""\nclass C(B):\n    """C."""\n    def h(self):\n        pass\n',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_found(text: str) -> None:
    assert len(list(problems({"module.py": ast.parse(text)}))) == 1


@pytest.mark.parametrize(
    "more",
    [
        "",
        'class B(A):\n    """B."""\n    def f(self):\n        pass\n',
        'class B(library.C):\n    """B."""\n    def g(self):\n        pass\n',
        "def _g():\n    pass\n",
    ],
    ids=["plain", "overrides ours", "overrides a library's", "private"],
)
def test_what_is_not_found(more: str) -> None:
    assert list(problems({"module.py": ast.parse(GOOD + more)})) == []
