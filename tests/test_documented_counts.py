"""Numbers in the documents that count something are compared with what they count."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.platforms.shims import registry
from tests.faults import test_kill_in_save as kill_in_save
from tests.faults import test_kills as kills
from tests.train import test_parity as parity

ROOT = Path(__file__).parents[1]
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def found(path: str, pattern: str) -> list[int]:
    """The numbers, as digits or words, of the only place in a document that matches; line breaks are spaces."""
    text = re.sub(r"\s+", " ", (ROOT / path).read_text(encoding="utf-8"))
    (match,) = re.finditer(pattern, text, re.IGNORECASE)
    return [int(word) if word.isdigit() else WORDS.index(word.lower()) for word in match.groups()]


def parameters(test: Any, name: str) -> list[Any]:
    """Values of one argument in a test's parametrisation."""
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize" and name in mark.args[0])
    # `pytest.param` keeps the row in `values`; a row of a single argument is the value itself.
    if isinstance(mark.args[0], str):
        return [value.values[0] if hasattr(value, "values") else value for value in mark.args[1]]
    column = mark.args[0].index(name)
    return [(value.values if hasattr(value, "values") else value)[column] for value in mark.args[1]]


def test_layouts_that_are_compared_with_one_process() -> None:
    layouts = {*parity.LAYOUTS, *parity.IN_REAL_VOCABULARY}
    exact = [layout for layout in layouts if layout[0] != "bf16"]
    rounded = [layout for layout in layouts if layout[0] == "bf16"]
    largest = max(processes for _, processes, _ in layouts)
    assert found("README.md", r"on (\d+) layouts of up to (\d+) processes and on one process") == [len(exact), largest]
    assert found("README.md", r"In bf16 (\w+) layouts stay within") == [len(rounded)]


@pytest.mark.parametrize(("layout", "words"), [("dp2", "DP2, fp32"), ("tp2-pp2", "TP2 x PP2, fp32")])
def test_kills_of_the_campaigns(layout: str, words: str) -> None:
    pairs = zip(
        parameters(kills.test_killed_ranks_come_back_bitwise, "layout"),
        parameters(kills.test_killed_ranks_come_back_bitwise, "kills"),
        strict=True,
    )
    most = max(count for name, count in pairs if name == layout)
    # A run of so many kills has `APART` steps to each and as many after the last.
    row = rf"\| {words} \| anywhere in a step or the save after it \| (\d+) \| (\d+) \| (\d+) \|"
    assert found("docs/reliability.md", row) == [most, most, (most + 1) * kills.APART]


def test_kills_in_every_dimension() -> None:
    places = max(parameters(kills.test_three_dimensions_sequence_parallel_overlapped_in_bf16, "places"), key=len)
    steps = max(parameters(kills.test_three_dimensions_sequence_parallel_overlapped_in_bf16, "steps"))
    row = r"overlap, bf16 \| mid-step, mid-save, in evaluation \| (\d+) \| (\d+) \| (\d+),"
    assert found("docs/reliability.md", row) == [len(places), len(places), steps]
    assert set(places) == {"mid-step", "mid-save", "in evaluation"}


def test_places_of_a_save() -> None:
    asynchronous, synchronous = (len(kill_in_save.PLACES[mode]) for mode in ("asynchronous", "synchronous"))
    row = r"(\w+) places of an asynchronous save, [^|]* \| (\d+) \| (\d+) \|"
    assert found("docs/reliability.md", row) == [asynchronous] * 3
    assert (
        found("docs/reliability.md", r"the same (\w+) of a synchronous save \| (\d+) \| (\d+) \|") == [synchronous] * 3
    )


def test_kinds_of_shim() -> None:
    kinds = registry.Shim.__subclasses__()
    for path, pattern in (
        ("docs/design/001-shims.md", r"(\w+) kinds of shim"),
        ("docs/architecture.md", r"There are (\w+) kinds in `registry.py`"),
        ("CONTRIBUTING.md", r"an entry of one of the (\w+) kinds"),
    ):
        assert found(path, pattern) == [len(kinds)], path


def test_table_of_presets() -> None:
    """One row for each preset; parameters and dimensions are its own."""
    row = re.compile(r"^\| `([a-z0-9.-]+)` \| ([\d,]+) \| (\d+), (\d+), (\d+) \|", re.MULTILINE)
    rows = row.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {name for name, *_ in rows} == PRESETS.keys()
    for name, *numbers in rows:
        model = PRESETS[name]
        counted = (count_parameters(model), model.num_layers, model.hidden_size, model.num_attention_heads)
        assert tuple(int(number.replace(",", "")) for number in numbers) == counted, name


def test_a_count_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    wrong, number = re.subn(r"on \d+ layouts", "on 999 layouts", text)
    assert number == 1
    (tmp_path / "README.md").write_text(wrong, encoding="utf-8")
    monkeypatch.setattr("tests.test_documented_counts.ROOT", tmp_path)
    with pytest.raises(AssertionError):
        test_layouts_that_are_compared_with_one_process()
