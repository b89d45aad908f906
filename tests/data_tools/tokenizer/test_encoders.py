"""The fast encoder equals tiktoken and gigatoken, and a difference stops the run."""

import random
from collections.abc import Sequence

import gigatoken
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_tools.errors import DataError
from data_tools.sources.python_stdlib import source_files
from data_tools.text.normalization import nfc
from data_tools.tokenizer.encoder import (
    CHECKED_CHARACTERS,
    NativeEncoder,
    Ragged,
    TiktokenEncoder,
    check_against_reference,
    qwen_encoder,
)
from data_tools.tokenizer.qwen import vocab_path
from data_tools.tokenizer.rank_file import format_ranks
from data_tools.tokenizer.report import rank_encoding
from tests.data_tools.tokenizer.vocabularies import BYTES, learned, text_of
from tests.support.scripts import SENTENCES

NATIVE = qwen_encoder()
TIKTOKEN = TiktokenEncoder()
GIGATOKEN = gigatoken.Tokenizer.from_tiktoken(str(vocab_path()), pretokenizer="qwen2", special_tokens={})

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
    fast, reference = NATIVE.encode_batch(normalized), TIKTOKEN.encode_batch(normalized)
    assert fast.lengths.tolist() == reference.lengths.tolist()
    assert np.array_equal(fast.tokens, reference.tokens)
    assert fast.tokens.dtype == reference.tokens.dtype == np.int32
    for text, end in zip(normalized, np.cumsum(fast.lengths), strict=True):
        assert list(GIGATOKEN.encode(text)) == fast.tokens[end - len(GIGATOKEN.encode(text)) : end].tolist()


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, max_size=5))
@example([])
@example([""])
@example(["", "a", ""])
@example(["'ſ 'S K's"])
def test_it_equals_tiktoken_and_gigatoken_on_random_text(texts: list[str]) -> None:
    assert_same(texts)


def test_it_equals_both_on_scripts_cut_and_mixed() -> None:
    chooser = random.Random(1)
    characters = "".join(SENTENCES)
    texts = [*SENTENCES]
    for _ in range(300):
        pieces = []
        for _ in range(chooser.randrange(1, 8)):
            sentence = chooser.choice([*SENTENCES, characters])
            begin = chooser.randrange(len(sentence))
            pieces.append(sentence[begin : begin + chooser.randrange(1, 30)])
        texts.append("".join(pieces))
        texts.append("".join(chooser.choices(characters, k=chooser.randrange(1, 40))))
    assert_same(texts)


def test_it_equals_both_on_the_standard_library() -> None:
    texts = [path.read_text(encoding="utf-8") for path in source_files()][::4]
    assert sum(map(len, texts)) > 1_000_000
    assert_same(texts)


def test_it_takes_any_vocabulary() -> None:
    """One that was continued, and one whose tokens are made of nothing: what tiktoken does with it is the rule."""
    chooser = random.Random(2)
    continued = learned(BYTES, [(text_of("han", 60), 1), (text_of("latin", 60), 1)], 400, 1, 128)
    letters = ["a", "b", "é", "你", "好", "中", "𠀀"]
    odd = [*BYTES]
    while len(odd) < 900:
        token = "".join(chooser.choices(letters, k=chooser.randrange(1, 6))).encode()
        begin = chooser.randrange(len(token))
        token = token[begin : begin + chooser.randrange(1, 20)]
        if token not in odd:
            odd.append(token)
    texts = ["".join(chooser.choices([*letters, " ", "\n"], k=chooser.randrange(1, 60))) for _ in range(800)]
    texts += [text_of("han", 40, 5), text_of("latin", 40, 5)]
    for tokens in (continued, odd):
        encoding = rank_encoding("any", tokens)
        found = NativeEncoder(format_ranks(tokens)).encode_batch(texts)
        assert found.tokens.tolist() == [token for text in texts for token in encoding.encode_ordinary(text)]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (b"IQ== 1\n", "r:1: must have a token and the rank 0"),
        (b"IQ= 0\n", "r:1: must be a token in base64"),
        (b"nothing", "r:1: must be a token in base64"),
        (b"IQ== 0\nIQ== 1\n", "r:2: the token of line 1 once more"),
        (b"IQ== 0\n", "r: no token is the byte 0; all 256 must be there"),
    ],
)
def test_wrong_rank_files_are_named_by_line(ranks: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NativeEncoder(ranks, "r")


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n ", "é", "你", "你好", "\u0301", "=", "👩\u200d", "𠀀"])
def test_work_grows_with_the_text_and_hardly_faster(unit: str) -> None:
    """Unions looked up for one word or run of any length: a million bytes take ten times what a tenth takes."""
    count = NATIVE.kernel.count_lookups
    short, long = (count(unit * (size // len(unit.encode()))) for size in (20_000, 200_000))
    assert long <= 10.1 * short + 100


def test_one_very_long_word_is_what_tiktoken_makes_of_it() -> None:
    chooser = random.Random(4)
    for letters in ("etaoinshrdlu", "=-*#_/", " ", "\n ", "éèàcla", "你好世界的中国人", "กขคาเแ"):
        assert_same(["".join(chooser.choices(letters, k=size)) + "x" for size in (70, 300, 4000)])
    assert_same(["ab" * 20_000, "你好世界" * 5_000, "x" * 65 + "y", "z" * 64, "é" * 9_999 + "!" * 9_999])


class WrongEncoder:
    """Gives the right ids except for one."""

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        tokens, lengths = TIKTOKEN.encode_batch(texts)
        tokens[3] += 1
        return Ragged(tokens, lengths)


@pytest.mark.parametrize("text", ["one two three four five", "word " * CHECKED_CHARACTERS])
def test_a_difference_is_an_error_that_names_the_token(text: str) -> None:
    wrong = WrongEncoder()
    with pytest.raises(DataError, match="differ at token 3 of a text that begins"):
        check_against_reference(wrong, TIKTOKEN, text, wrong.encode_batch([text]).tokens)
    check_against_reference(NATIVE, TIKTOKEN, text, NATIVE.encode_batch([text]).tokens)


def test_missing_last_token_is_a_difference() -> None:
    tokens = TIKTOKEN.encode_batch(["one two three"]).tokens
    with pytest.raises(DataError, match="differ at token 2"):
        check_against_reference(NATIVE, TIKTOKEN, "one two three", tokens[:2])
