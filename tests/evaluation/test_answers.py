"""Numbers, LaTeX, letters, code and calls of tools, found in what a model says."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_megatron.evaluation.answers import code_of_reply, is_correct, is_same_number, last_number, number_of
from qwen_megatron.evaluation.latex import boxed, is_equal_latex
from qwen_megatron.evaluation.react import Call, call_in, rouge_l


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("So 20-2=18 dollars", "18"),
        ("$20,800 per year", "20,800"),
        ("-5 degrees", "-5"),
        ("3-5", "5"),
        ("7 - -2 = 9, minus 10 gives -1", "-1"),
        ("1.50", "1.50"),
        ("3/4 of it", "3/4"),
        ("about 25%", "25%"),
        ("in 1,2 or 3", "3"),
        ("no number", None),
        ("x2", "2"),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("1(1/2)", Fraction(3, 2)),
        ("-1((1)/(2))", Fraction(-3, 2)),
        ("(3/4)", Fraction(3, 4)),
        ("((3)/(4))", None),
        ("25%", Fraction(1, 4)),
        ("1e3", Fraction(1000)),
        ("1e9999999", None),
        ("1/0", None),
        ("1(1/0)", None),
        ("nan", None),
        ("", None),
    ],
)
def test_values_of_numbers(text: str, value: Fraction | None) -> None:
    assert number_of(text) == value


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "it is {}.", "= {} apples", "${}"]))
def test_whole_numbers_are_found_however_they_are_written(number: int, form: str) -> None:
    assert is_same_number(last_number(form.format(number)), str(number))
    assert not is_same_number(last_number(form.format(number)), str(number + 1))


def test_numbers_are_the_same_to_a_thousandth() -> None:
    assert is_same_number("0.33", "33%")
    assert is_same_number("33%", "33")
    assert is_same_number("0.3333", "1/3")
    assert not is_same_number("0.331", "1/3")
    assert not is_same_number(None, "0")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{x^{2}}", "x^{2}"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{1", None),
        ("nothing", None),
    ],
)
def test_boxed_answers(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


SAME = [
    (r"\frac{1}{2}", r"\dfrac12", "1/2", "0.5", ".5"),
    (r"(1, 2)", r"\left( 1,\! 2 \right)", "(1,2)"),
    (r"10\%", "10", r"\$10", "10^\\circ"),
    (r"1{,}000".replace("{,}", ","), "1000"),
    ("x=3", "3", "3.0"),
    (r"\text{east}", "east"),
    (r"5 \text{ cm}", "5"),
    (r"-\frac{3}{4}", "-0.75", r"\frac{-3}{4}"),
    (r"\sqrt3", r"\sqrt{3}"),
]


def test_latex_of_one_meaning() -> None:
    for group in SAME:
        for one, other in itertools.permutations(group, 2):
            assert is_equal_latex(one, other), (one, other)
    for group, others in itertools.permutations(SAME, 2):
        assert not is_equal_latex(group[0], others[0]), (group[0], others[0])


def test_letters() -> None:
    for text in (
        "B",
        "B.",
        "(B)",
        "Answer: B",
        "The correct option is B, since A fails",
        "答案：B",
        "选B",
        "我认为B正确",
    ):
        assert is_correct("letter", text, "B", "ABCD"), text
    for text in ("Because", "", "A", "The answer is A. Not B."):
        assert not is_correct("letter", text, "B", "ABCD"), text


def test_an_answer_after_answer_is() -> None:
    assert is_correct("answer_is", "So the answer is (C).\nMore", "(C)")
    assert is_correct("answer_is", "the answer is x. Hm. So the answer is  ] ] .", "] ]")
    assert not is_correct("answer_is", "(C)", "(C)")


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Here:\n```python\nx = 1\ndef f():\n    return 1\n```\nThat is it", "x = 1\ndef f():\n    return 1"),
        ("```\nimport os", "import os"),
        ("return 1", "    return 1"),
        ("    return 1", "    return 1"),
    ],
)
def test_the_code_of_a_reply(reply: str, code: str) -> None:
    assert code_of_reply(reply) == code


def test_calls() -> None:
    assert call_in('Action: Search \nAction Input: {"b": 1, "a": 2}\nObservation: x') == Call(
        "search", '{"a": 2, "b": 1}'
    )
    assert call_in("Thought: x\nAction: search\nAction Input: {") == Call("search", "")
    assert call_in('Action: search\nAction Input: {"a": NaN}') == Call("search", "")
    assert call_in("Final Answer: 1") is None


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_rouge_l_is_the_longest_common_subsequence(one: list[str], other: list[str]) -> None:
    subsequences = [
        set(itertools.chain(*(itertools.combinations(x, n) for n in range(len(x) + 1)))) for x in (one, other)
    ]
    longest = max(len(common) for common in subsequences[0] & subsequences[1])
    expected = 2 * longest / (len(one) + len(other)) if one and other else 0.0
    assert rouge_l(one, other) == pytest.approx(expected)
