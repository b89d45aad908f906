"""The fast encoder equals the reference, and a difference stops the run."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.sources.python_stdlib import source_files
from data_tools.text.normalization import nfc
from data_tools.tokenizer.encoder import (
    CHECKED_CHARACTERS,
    GigatokenEncoder,
    Ragged,
    TiktokenEncoder,
    check_against_reference,
)
from data_tools.tokenizer.qwen import FINGERPRINT

GIGATOKEN = GigatokenEncoder()
TIKTOKEN = TiktokenEncoder()

# Random code points hardly ever form words; pieces of scripts and the pattern's special cases do.
FRAGMENTS = st.sampled_from(
    [
        "'s",
        "'LL",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u3000",
        "\u00a0",
        "1",
        "２",
        "Ⅷ",
        "abc",
        "É",
        "e\u0301",
        "नमस्ते",
        "你好",
    ]
    + [
        "한국어",
        "ไทย",
        "שלום",
        "🙂",
        "\u200d",
        "👩\u200d🚀",
        "<|endoftext|>",
        "<|im_end|>",
        "!!",
        "\x00",
        "\ufeff",
        "ſ",
        "K",
    ]
)
TEXT = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(FRAGMENTS, max_size=30).map("".join))


def assert_same(texts: Sequence[str]) -> None:
    normalized = [nfc(text) for text in texts]
    fast, reference = GIGATOKEN.encode_batch(normalized), TIKTOKEN.encode_batch(normalized)
    assert fast.lengths.tolist() == reference.lengths.tolist()
    assert np.array_equal(fast.tokens, reference.tokens)
    assert fast.tokens.dtype == reference.tokens.dtype == np.int32


@settings(max_examples=500, deadline=None)
@given(st.lists(TEXT, max_size=5))
@example([])
@example([""])
@example(["", "a", ""])
@example(["'ſ 'S K's"])
def test_gigatoken_equals_tiktoken_on_random_text(texts: list[str]) -> None:
    assert_same(texts)


def test_gigatoken_equals_tiktoken_on_the_standard_library() -> None:
    texts = [path.read_text(encoding="utf-8") for path in source_files()]
    assert sum(map(len, texts)) > 5_000_000
    assert_same(texts)


def test_a_new_cache_gives_the_same_tokens() -> None:
    encoder = GigatokenEncoder(cache_limit_bytes=-1)  # A new one for every batch.
    first = encoder._tokenizer
    texts = ["Hello world", "你好"]
    assert encoder.encode_batch(texts).tokens.tolist() == [9707, 1879, 108386]
    assert encoder.encode_batch(texts).tokens.tolist() == [9707, 1879, 108386]
    assert encoder._tokenizer is not first


def test_both_name_the_same_vocabulary() -> None:
    assert GIGATOKEN.fingerprint == TIKTOKEN.fingerprint == FINGERPRINT


class WrongEncoder:
    """Gives the right ids except for one."""

    fingerprint = FINGERPRINT

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        tokens, lengths = TIKTOKEN.encode_batch(texts)
        tokens[3] += 1
        return Ragged(tokens, lengths)


@pytest.mark.parametrize("text", ["one two three four five", "word " * CHECKED_CHARACTERS])
def test_a_difference_is_an_error_that_names_the_token(text: str) -> None:
    wrong = WrongEncoder()
    with pytest.raises(DataError, match="differ at token 3 of a text that begins"):
        check_against_reference(wrong, TIKTOKEN, text, wrong.encode_batch([text]).tokens)
    check_against_reference(GIGATOKEN, TIKTOKEN, text, GIGATOKEN.encode_batch([text]).tokens)


def test_missing_last_token_is_a_difference() -> None:
    tokens = TIKTOKEN.encode_batch(["one two three"]).tokens
    with pytest.raises(DataError, match="differ at token 2"):
        check_against_reference(GIGATOKEN, TIKTOKEN, "one two three", tokens[:2])
