"""Records: what is read, what is refused with which words, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval
from hypothesis import given
from hypothesis import strategies as st

from data_tools.settings.check import UNUSABLE, checked
from data_tools.settings.nodes import assembled, parse_override, read_record
from data_tools.settings.problems import Problems
from data_tools.settings.records import Count, Positive, Rule, Share, docs_of, record
from data_tools.settings.words import bounds, type_name
from data_tools.settings.yaml_text import parse_nodes


@record
class Part:
    """One part."""

    name: Annotated[str, Rule(str.isalpha, "must be letters")]
    """What it is
    called."""
    weight: Positive = 1.0
    """Its weight."""


@record
class Whole(Part):
    """Parts and more."""

    parts: tuple[Part, ...] = ()
    """The parts."""
    kind: Literal["small", "large"] = "small"
    """How large."""
    pair: tuple[int, float] = (1, 2.0)
    """Two numbers."""
    shares: Mapping[str, Share] | None = None
    """Name -> share."""
    count: Count | None = None
    """How many."""
    both: tuple[str, ...] | Mapping[str, float] = ()
    """Either."""


def read(text: str) -> tuple[Any, list[str]]:
    problems = Problems()
    node = parse_nodes(text)
    assert node is not None
    made = read_record(Whole, node, "", "f.yaml", problems)
    return made, problems.messages


def test_a_record_is_read_with_defaults_and_text_as_it_was_written() -> None:
    made, problems = read(
        "name: a\nparts:\n- {name: b, weight: 2}\n- name: no\nshares: {x: 1, 007: 0.5}\nboth: [007, 1e3]\n"
    )
    assert problems == []
    assert made == Whole(
        name="a",
        parts=(Part(name="b", weight=2.0), Part(name="no")),
        shares={"x": 1.0, "007": 0.5},
        both=("007", "1e3"),
    )
    assert type(made.parts[0].weight) is float
    with pytest.raises(FrozenInstanceError):
        made.name = "b"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("weight: 1", "name: is missing (f.yaml:1)"),
        ("name: a\nparts:\n- name: b\n  wight: 3", ("parts[0].wight=3: unknown key; the closest known one is weight "
         "(f.yaml:4)")),
        ("name: a\nparts:\n- name: b\n- weight: 3", "parts[1].name: is missing (f.yaml:4)"),
        ("name: a\nparts: {a: 1}", "parts={...}: must be a list (f.yaml:2)"),
        ("name: a1", "name=a1: must be letters (f.yaml:1)"),
        ("name: a\nweight: 0", "weight=0: must be above 0; use 1 (the default) (f.yaml:2)"),
        ("name: a\nweight: .inf", "weight=inf: must be a finite number; use 1 (the default) (f.yaml:2)"),
        ("name: a\nweight: true", "weight=true: must be a number; use 1 (the default) (f.yaml:2)"),
        ("name: a\nkind: larg", "kind=larg: must be small or large; use large (f.yaml:2)"),
        ("name: a\nkind: [small]", "kind=['small']: must be a string; use small (the default) (f.yaml:2)"),
        ("name: a\npair: [1]", "pair=[1]: must be a list of 2 values (f.yaml:2)"),
        ("name: a\npair: [1, 2, 3]", "pair=[1, 2, 3]: must be a list of 2 values (f.yaml:2)"),
        ("name: a\npair: [1.5, 2]", "pair[0]=1.5: must be an integer (f.yaml:2)"),
        ("name: a\npair: [2.0, 2]", "pair[0]=2: must be an integer; use 2 (f.yaml:2)"),
        ("name: a\nshares: {x: 2}", "shares.x=2: must be at most 1; use 1 (f.yaml:2)"),
        ("name: a\nshares: [x]", "shares=['x']: must be a mapping or null (f.yaml:2)"),
        ("name: a\ncount: 0", "count=0: must be at least 1; use 1 (f.yaml:2)"),
        ("name: a\ncount: x", "count=x: must be an integer or null (f.yaml:2)"),
        ("name: a\nboth: 3", "both=3: must be a list or a mapping (f.yaml:2)"),
        ("name: a\nboth: {a: b}", "both={...}: must be a list or a mapping (f.yaml:2)"),
        ("name: a\nname: b", "name is given twice (line 2); keep one (f.yaml:1)"),
        ("name: !!python/name:os.system ''", ("name=: the tag !!python/name:os.system is not allowed; write a plain "
         "value (f.yaml:1)")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_key_value_rule_and_line(text: str, problem: str) -> None:
    made, problems = read(text)
    assert made is UNUSABLE
    assert problems == [problem]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    _, problems = read("weight: -1\nkind: x\nparts: [{name: 5, weight: a}]\ncount: -1\n")
    assert [problem.partition(":")[0].partition("=")[0] for problem in problems] == [
        "name", "weight", "parts[0].name", "parts[0].weight", "kind", "count",
    ]  # fmt: skip


def test_aliases_are_followed_but_not_without_end() -> None:
    made, problems = read("name: &a x\nparts: [{name: *a}]\n")
    assert (made.parts[0].name, problems) == ("x", [])
    bomb = "name: a\nboth: &0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"k{i}: &{i} [{', '.join([f'*{i - 1}'] * 8)}]\n" for i in range(1, 9)
    )
    made, problems = read(bomb)
    assert made is UNUSABLE
    assert "so many values" in problems[0]


def test_docs_types_and_bounds_are_those_of_the_fields() -> None:
    assert docs_of(Whole)["name"] == "What it is called."
    assert docs_of(Whole)["kind"] == "How large."
    assert type_name(Count | None) == "an integer or null"
    assert bounds(Count | None) == ">= 1"
    assert bounds(Annotated[float, Interval(gt=0.0, le=1.0)]) == "> 0, <= 1"
    assert bounds(Literal["a", "b"]) == "a or b"


def test_overrides_nest_and_contradictions_are_named() -> None:
    problems = Problems()
    parsed = [parse_override(text, problems) for text in ("name=x", "a.b=1", "a.c=[2]", "a=3", "a.b=4", "a.b.c=5")]
    node = assembled([one for one in parsed if one is not None], problems)
    assert [(key.value, type(value).__name__) for key, value in node.value] == [
        ("name", "ScalarNode"),
        ("a", "MappingNode"),
    ]
    assert [message.partition(":")[0] for message in problems.messages] == ["a=3", "a.b=4", "a.b.c=5"]


@pytest.mark.parametrize("value", ["runs/exp #1", "runs/exp # 1", "[a] #b", "5 # five", "#2", " # "])
def test_nothing_behind_a_hash_is_lost(value: str) -> None:
    problems = Problems()
    assert parse_override(f"checkpoint.directory={value}", problems) is None
    (message,) = problems.messages
    assert f"""'checkpoint.directory="{value}"'""" in message


@pytest.mark.parametrize("value", ["runs/exp#1", "'runs/exp #1'", '"a # b"'])
def test_a_hash_that_is_text_is_text(value: str) -> None:
    problems = Problems()
    parsed = parse_override(f"key={value}", problems)
    assert parsed is not None
    assert parsed[1].value == value.strip("'\"")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_any_plain_data_is_a_record_or_gives_problems(value: object) -> None:
    problems = Problems()
    made = checked(Whole, {"name": "a", "parts": [value], "shares": value, "both": value, "pair": value}, "", problems)
    assert (made is UNUSABLE) == bool(problems.messages)
