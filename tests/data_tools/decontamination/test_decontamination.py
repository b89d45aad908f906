"""Benchmark items planted in texts are found where they are; clean text is left alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.decontamination import (
    BenchmarkIndex,
    BenchmarkItem,
    DecontaminationConfig,
    Match,
    remove_spans,
    report_line,
)
from data_tools.errors import DataError
from data_tools.text import normalize
from data_tools.text.normalized import sources_of_normalized
from tests.support import text_oracle as oracle
from tests.support.text_strategies import texts

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
SHORT = "What is the airspeed of an unladen swallow?"
CHINESE = "小明有十二个苹果，他把其中的三分之一给了小红，还剩下多少个苹果？"
ITEMS = [
    BenchmarkItem("math", "1", QUESTION),
    BenchmarkItem("trivia", "7", SHORT),
    BenchmarkItem("math-zh", "3", CHINESE),
    BenchmarkItem("trivia", "8", "Yes or no?"),
]


@pytest.fixture(scope="module")
def index() -> BenchmarkIndex:
    return BenchmarkIndex(ITEMS)


def filler(seed: int, count: int = 40) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("aeioulmnrst", k=6)) for _ in range(count))


def test_a_verbatim_item_is_found_where_it_is(index: BenchmarkIndex) -> None:
    before, after = filler(1) + ". ", " " + filler(2)
    (found,) = index.find([before + QUESTION + after])
    # Symbols belong to no n-gram, so the question mark stays outside.
    assert found == [Match("math", "1", len(before), len(before) + len(QUESTION) - 1)]


def test_case_form_and_white_space_hide_nothing(index: BenchmarkIndex) -> None:
    disguised = QUESTION.upper().replace(" ", " \n ").replace(",", " --")
    full_width = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in QUESTION)
    for text in (disguised, full_width, QUESTION.replace("Natalia", "Natali\u0430").replace("\u0430", "a")):
        (found,) = index.find([text])
        assert [(match.item, match.start, match.end) for match in found] == [("1", 0, len(text) - 1)]


def test_texts_with_composing_marks_are_searched_too(index: BenchmarkIndex) -> None:
    before = "re\u0301sume\u0301 "
    (found,) = index.find([before + QUESTION + " ae\u0301"])
    assert [(match.start, match.end) for match in found] == [(len(before), len(before) + len(QUESTION) - 1)]
    # Normalisation makes several words of one here, with places that are not those of the text.
    for odd in ("\ufdfa", "\u00bd", "\u2122", "a\u00bdb", "\u1100\u1161\u11a8", "\u0344", " \u00b4 \u3000 x"):
        before = f"e\u0301 {odd} "
        (found,) = index.find([f"{before}{QUESTION} {odd}e\u0327\u0301"])
        assert [(match.item, match.start, match.end) for match in found] == [
            ("1", len(before), len(before) + len(QUESTION) - 1)
        ]


@settings(max_examples=300, deadline=None)
@given(texts(max_size=25))
def test_sources_of_the_normalized_text(text: str) -> None:
    starts, ends = sources_of_normalized(text)
    normal = normalize(text)
    assert len(starts) == len(ends) == len(normal)
    assert starts == sorted(starts)
    for start, end, character in zip(starts, ends, normal, strict=True):
        assert character in normalize(f"q{text[start:end]}q")  # Between letters, so that white space stays.


def test_one_edited_word_leaves_what_is_on_its_sides(index: BenchmarkIndex) -> None:
    # 31 words; the 16th of them changed leaves 15 before and 15 behind: both hold 13-grams.
    words = QUESTION.split()
    assert len(words) == 31
    words[15] = "thrice"
    (found,) = index.find([" ".join(words)])
    assert [match.item for match in found] == ["1", "1"]
    assert found[0].end <= found[1].start
    words[7] = words[21] = "xyz"  # Now no 13 words in a row are left.
    assert index.find([" ".join(words)]) == [[]]


def test_a_short_item_must_be_there_whole(index: BenchmarkIndex) -> None:
    assert [match.item for match in index.find([f"So: {SHORT} African."])[0]] == ["7"]
    assert index.find([SHORT.replace("unladen ", ""), "the airspeed of an unladen swallow"]) == [[], []]


def test_a_shorter_ngram_finds_parts_of_short_items() -> None:
    question = "Write a function to find the shared elements of two lists"  # 11 words
    config = DecontaminationConfig(short_num_words=8)
    items = [BenchmarkItem("code", "1", question), *ITEMS]
    part = " ".join(question.split()[2:10])
    assert BenchmarkIndex(items).find([f"{part} said nobody"]) == [[]]
    index = BenchmarkIndex(items, config)
    assert [(match.item, match.start, match.end) for match in index.find([f"{part} said nobody"])[0]] == [
        ("1", 0, len(part))
    ]
    assert index.find([" ".join(question.split()[3:10])]) == [[]]
    # Longer ones have 13 words in a row as before, and shorter ones are there whole.
    assert index.find([" ".join(QUESTION.split()[:12])]) == [[]]
    assert [match.item for match in index.find([SHORT])[0]] == ["7"]
    assert (BenchmarkIndex(items).num_whole, index.num_whole) == (2, 1)


def test_items_too_short_to_mean_anything_are_left_out(index: BenchmarkIndex) -> None:
    assert [item.name for item in index.left_out] == ["8"]
    assert index.find(["Yes or no? Yes or no?"]) == [[]]


def test_chinese_is_searched_by_character(index: BenchmarkIndex) -> None:
    text = "下面是一道题。" + CHINESE + "答案是八个。"
    (found,) = index.find([text])
    assert [text[match.start : match.end] for match in found] == [CHINESE[:-1]]


def test_parts_that_overlap_by_twelve_words_miss_nothing(index: BenchmarkIndex) -> None:
    words = (filler(3) + " " + QUESTION + " " + filler(4)).split()
    size = 20
    for offset in range(size):
        edges = list(range(offset, len(words), size))
        parts = [words[max(edge - 12, 0) : edge + size] for edge in [0, *edges]]
        assert any(index.find([" ".join(part) for part in parts])), offset


def test_nothing_is_found_in_clean_text(index: BenchmarkIndex) -> None:
    import inspect
    import json
    import os

    clean = [inspect.getsource(module) for module in (inspect, json, os)] + [filler(seed, 400) for seed in range(50)]
    assert not any(index.find(clean))


def test_an_ngram_of_two_items_names_both() -> None:
    shared = filler(5, 13)
    index = BenchmarkIndex([BenchmarkItem("a", str(n), f"{shared} {filler(6 + n, 3)}") for n in range(3)])
    assert [(match.item, match.start, match.end) for match in index.find([shared])[0]] == [
        (str(n), 0, len(shared)) for n in range(3)
    ]


def ngrams_in_python(text: str, n: int) -> set[tuple[str, ...]]:
    words = oracle.plain_words(oracle.normalize(text))
    return {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}


@settings(max_examples=200, deadline=None)
@given(st.lists(texts(max_size=10), max_size=8), texts(max_size=30))
def test_matches_equal_the_oracle(items: list[str], text: str) -> None:
    config = DecontaminationConfig(num_words=3, min_words=2)
    index = BenchmarkIndex([BenchmarkItem("b", str(n), item) for n, item in enumerate(items)], config)
    expected = set()
    for number, item in enumerate(items):
        length = min(3, len(oracle.plain_words(oracle.normalize(item))))
        if length >= 2 and ngrams_in_python(item, length) & ngrams_in_python(text, length):
            expected.add(str(number))
    assert {match.item for match in index.find([text])[0]} == expected


def test_a_large_index_finds_every_item_and_threads_agree() -> None:
    items = [BenchmarkItem("b", str(n), filler(1000 + n, 30)) for n in range(3000)]
    index = BenchmarkIndex(items)
    assert len(index) == 3000 * 18
    documents = [f"{filler(n)} {item.text}" for n, item in enumerate(items[::3])]
    found = index.find(documents)
    assert [[match.item for match in matches] for matches in found] == [[item.name] for item in items[::3]]
    assert BenchmarkIndex(items, threads=3).find(documents) == found


def test_spans_are_removed_and_the_rest_joined() -> None:
    text = "before  MATCH behind MATCH end"
    spans = [Match("b", "1", 21, 26), Match("b", "1", 8, 13), Match("b", "2", 10, 13)]
    assert remove_spans(text, spans) == "before\nbehind\nend"
    assert remove_spans(text, spans, margin=2) == "before\nehin\nnd"
    assert remove_spans(text, []) == text
    assert remove_spans("MATCH", [Match("b", "1", 0, 5)]) == ""


def test_the_report_shows_the_match_in_its_context() -> None:
    line = report_line("aaa bbb MATCH ccc ddd", Match("b", "1", 8, 13), "f.jsonl:3", context=4)
    assert line == {
        "benchmark": "b",
        "item": "1",
        "document": "f.jsonl:3",
        "start": 8,
        "end": 13,
        "before": "bbb ",
        "matched": "MATCH",
        "after": " ccc",
    }


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(DataError, match="min_words=14 must be from 1 to num_words=13"):
        DecontaminationConfig(min_words=14)
    with pytest.raises(DataError, match="short_num_words=5 must be from min_words=6 to num_words=13"):
        DecontaminationConfig(short_num_words=5)


def test_an_empty_index_finds_nothing() -> None:
    index = BenchmarkIndex([])
    assert len(index) == 0
    assert index.find([QUESTION, ""]) == [[], []]
