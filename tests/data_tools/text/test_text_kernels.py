"""Words, statistics, normalised form and hashes against plain Python."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings

from data_tools import _native
from data_tools.text import COLUMNS, normalize, normalized_hashes, text_statistics, words
from data_tools.text.characters import character_table
from tests.support import text_oracle as oracle
from tests.support.text_strategies import texts

STOP_WORDS = ["the", "of", "a", "\u662f"]


@settings(max_examples=200, deadline=None)
@given(texts())
def test_words_equal_the_oracle(text: str) -> None:
    assert words(text) == oracle.words(text)


def test_words_of_several_scripts() -> None:
    assert words("Don't pay 3.14, foo_bar... ok") == ["Don't", "pay", "3.14", ",", "foo_bar", "...", "ok"]
    assert words("\u6211\u662fQwen\u3002\u30ab\u30ca \ud55c\uad6d\uc5b4") == [
        "\u6211",
        "\u662f",
        "Qwen",
        "\u3002",
        "\u30ab",
        "\u30ca",
        "\ud55c\uad6d\uc5b4",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://a.org/b?c=d&e=%20#f, now", ["see", "https://a.org/b?c=d&e=%20#f", ",", "now"]),
        ("[x](http://a.org/b_(c)).", ["[", "x", "](", "http://a.org/b_(c)", ")."]),
        ("www.A.org/1.", ["www.A.org/1", "."]),
        ("WWW.a.org", ["WWW.a.org"]),
        ("<file:///etc/x>", ["<", "file:///etc/x", ">"]),
        ("见https://a.org/b，好", ["见", "https://a.org/b", "，", "好"]),
        ("`ftp://a|b", ["`", "ftp://a", "|", "b"]),
        ("https:// x", ["https", ":", "//", "x"]),
        ("std::a www. x ww.a", ["std", "::", "a", "www", ".", "x", "ww", ".", "a"]),
        ("*https://a.org/*", ["*", "https://a.org/", "*"]),
    ],
)
def test_a_url_is_a_word(text: str, expected: list[str]) -> None:
    # A run is of one character, so that "](" are two words.
    assert "".join(words(text)) == "".join(expected)
    assert [word for word in words(text) if word[0].isalnum()] == [word for word in expected if word[0].isalnum()]


@settings(max_examples=200, deadline=None)
@given(texts())
def test_statistics_equal_the_oracle(text: str) -> None:
    statistics = text_statistics([text], STOP_WORDS, short_line_length=9)
    counted = {column: int(statistics[column][0]) for column in COLUMNS}
    assert counted == oracle.statistics(text, STOP_WORDS, 9)


def test_statistics_do_not_depend_on_batches_or_threads(texts: list[str]) -> None:
    batch = (texts + ["", "a b " * 3000]) * 20
    alone = np.vstack([text_statistics([text], STOP_WORDS).table for text in batch])
    for threads in (1, 4):
        assert np.array_equal(text_statistics(batch, STOP_WORDS, threads=threads).table, alone)


def test_ngrams_are_counted_in_the_first_million_words() -> None:
    text = "ab " * (2**20 + 5000)
    statistics = text_statistics([text])
    assert statistics["words"][0] == 2**20 + 5000
    assert statistics["top_2_gram"][0] == (2**20 - 1) * 5
    assert statistics["duplicate_5_grams"][0] == ((2**20 - 6) // 5 + 1) * 10


def test_too_many_stop_words_are_refused() -> None:
    with pytest.raises(ValueError, match="65 stop words; at most 64"):
        text_statistics(["x"], [str(number) for number in range(65)])


@settings(max_examples=400, deadline=None)
@given(texts(max_size=8))
def test_normal_form_equals_unicodedata(text: str) -> None:
    assert normalize(text) == oracle.normalize(text)


def test_normal_form_of_every_code_point() -> None:
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200))]
    # Between two letters, where a mark would find something to compose with.
    wrong = [hex(ord(c)) for c in characters if normalize(f"e{c}a") != oracle.normalize(f"e{c}a")]
    assert wrong == []


def test_the_kernel_does_the_common_scripts_itself() -> None:
    samples = [
        "Stra\u00dfe \u00c9COLE",
        "\u4e2d\u6587\uff0c\uff21",
        "\u041c\u0438\u0440",
        "\ud55c\uad6d",
        "\u0939\u093f\u0928\u094d\u0926\u0940",
    ]
    assert not _native.needs_context(character_table(), samples, 1).any()
    assert _native.needs_context(character_table(), ["e\u0301", "\u1100\u1161", "\u0301"], 1).all()


@settings(max_examples=200, deadline=None)
@given(texts())
def test_hash_equals_the_oracle(text: str) -> None:
    assert tuple(normalized_hashes([text])[0].tolist()) == oracle.murmur3_128(oracle.normalize(text).encode())


def test_murmur3_has_the_published_values() -> None:
    assert normalized_hashes([""]).tolist() == [[0, 0]]
    # "The quick brown fox jumps over the lazy dog" is published with its capital; the normalised text has none.
    assert oracle.murmur3_128(b"The quick brown fox jumps over the lazy dog") == (
        0xE34BBC7BBC071B6C,
        0x7A433CA9C49A9347,
    )


def test_hash_sees_through_case_form_and_white_space_only() -> None:
    same = ["Caf\u00e9  au\tlait", " CAFE\u0301 AU LAIT\n", "\uff23af\u00e9\u3000au\u00a0lait"]
    other = ["cafe au lait", "caf\u00e9 aulait", "caf\u00e9 au lait."]
    hashes = [tuple(row) for row in normalized_hashes(same + other).tolist()]
    assert len(set(hashes[:3])) == 1
    assert len(set(hashes)) == 4


def test_a_megabyte_of_marks_takes_linear_time() -> None:
    # unicodedata alone would need minutes for this.
    text = "\u0301\u0327" * 200_000
    assert len(normalize(text)) == len(text)


def test_lone_surrogates_and_invalid_bytes_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        text_statistics(["good", "bad \ud800"])
    for bad, place in (
        (b"ab\xff", 2),
        (b"\xc0\x80", 0),
        (b"a\xed\xa0\x80", 1),
        (b"\xf4\x90\x80\x80", 0),
        (b"\xe4\xb8", 0),
    ):
        with pytest.raises(ValueError, match=f"text 1 is not valid UTF-8 at byte {place}"):
            _native.statistics(character_table(), [b"good", bad], [], 30, 1)
    with pytest.raises(TypeError, match="text 0 is neither str nor bytes"):
        _native.statistics(character_table(), [3], [], 30, 1)  # type: ignore[list-item]


@settings(max_examples=100, deadline=None)
@given(texts())
def test_bytes_and_str_are_the_same(text: str) -> None:
    encoded = _native.statistics(character_table(), [text.encode()], STOP_WORDS, 30, 1)
    assert np.array_equal(encoded, text_statistics([text], STOP_WORDS).table)


def test_the_table_refuses_arrays_that_do_not_fit() -> None:
    empty = np.zeros(0, dtype=np.uint32)
    with pytest.raises(ValueError, match="do not describe one table"):
        _native.Characters(np.zeros(7, dtype=np.uint8), empty, np.zeros(1, dtype=np.uint32), b"")
    with pytest.raises(ValueError, match="contradicts its class"):
        _native.Characters(np.full(0x110000, 16, dtype=np.uint8), empty, np.zeros(1, dtype=np.uint32), b"")


def test_the_record_of_a_run_names_the_unicode_version() -> None:
    from data_tools.text import NORMALIZATION

    assert NORMALIZATION.endswith(unicodedata.unidata_version)
