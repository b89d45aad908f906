"""Vocabularies continued on texts, against counting everything anew for each token, tiktoken, gigatoken, tokenizers."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import gigatoken
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from data_tools import _native
from data_tools.errors import DataError, RefusedError
from data_tools.text.normalization import nfc
from data_tools.tokenizer.augment import Augmented, CorpusCounts, LearningOptions, augment, factors
from data_tools.tokenizer.qwen import PATTERN
from data_tools.tokenizer.rank_file import byte_pairs, format_ranks
from data_tools.tokenizer.report import rank_encoding
from qwen_megatron.convert.hf_tokenizer import merges_of
from tests.data_tools.tokenizer.vocabularies import BYTES, encoded_below, learned, text_of

SCRIPTS = ("latin", "cyrillic", "hebrew", "thai", "han")
Texts = Mapping[str, Sequence[str]]


def counted(texts: Texts, threads: int = 1) -> CorpusCounts:
    corpus = CorpusCounts(threads)
    for language, ones in texts.items():
        for text in ones:
            corpus.add(text, language)
    corpus.flush()
    return corpus


def augmented(base: Sequence[bytes], texts: Texts, size: int, **options: object) -> Augmented:
    rules = LearningOptions(size=size, **options)  # type: ignore[arg-type]
    return augment(base, counted(texts, rules.threads), rules)


@pytest.fixture(scope="module")
def base() -> list[bytes]:
    """A vocabulary that knows one script."""
    return augmented(BYTES, {"latin": [text_of("latin", 4000)]}, 700).tokens


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {script: [text_of(script, 1500, seed) for seed in (2, 3)] for script in SCRIPTS}


@pytest.fixture(scope="module")
def made(base: list[bytes], texts: dict[str, list[str]]) -> Augmented:
    return augmented(base, texts, 4000)


# Few letters, so that pairs overlap, meet again and tie; "e" and an accent, which become one letter.
SMALL_TEXT = st.text("aab e\u0301你\n1'", max_size=30)


@settings(max_examples=80)
@given(
    st.lists(SMALL_TEXT, max_size=4),
    st.lists(st.tuples(SMALL_TEXT, st.sampled_from(["x", "y"])), min_size=1, max_size=5),
    st.sampled_from([{}, {"x": 3.0, "y": 1.0}]),
    st.integers(1, 3),
    st.sampled_from([3, 128]),
    st.integers(1, 3),
)
def test_tokens_are_those_of_counting_anew(
    before: list[str],
    texts: list[tuple[str, str]],
    weights: dict[str, float],
    min_count: int,
    max_token_bytes: int,
    threads: int,
) -> None:
    base = learned(BYTES, [(nfc(text), 1) for text in before], 262, 1, 128)
    by_language: dict[str, list[str]] = {"x": ["aa"], "y": ["b"]}
    for text, language in texts:
        by_language[language].append(text)
    corpus = counted(by_language, threads)
    factor = dict(zip(corpus.num_bytes, map(int, factors(corpus.num_bytes, weights)), strict=True))
    rules = LearningOptions(
        size=272, weights=weights, min_count=min_count, max_token_bytes=max_token_bytes, threads=threads
    )
    found = augment(base, corpus, rules).tokens
    weighed = [(nfc(text), factor[language]) for language, ones in by_language.items() for text in ones]
    assert found == learned(base, weighed, 272, min_count, max_token_bytes)


@settings(max_examples=100)
@given(st.lists(SMALL_TEXT, max_size=4), st.binary(max_size=30), SMALL_TEXT)
def test_encoding_is_tiktokens_rule(texts: list[str], noise: bytes, text: str) -> None:
    tokens = learned(BYTES, [(nfc(one), 1) for one in texts], 270, 1, 128)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for word in (noise, text.encode()):
        assert byte_pairs(tokens, "v").encode(word) == [ranks[piece] for piece in encoded_below(word, ranks)]


def test_the_base_stays_and_every_new_token_is_made_of_two(base: list[bytes], made: Augmented) -> None:
    assert len(made.tokens) == len(set(made.tokens)) == 4000
    assert format_ranks(made.tokens).startswith(format_ranks(base))
    merges = merges_of({token: rank for rank, token in enumerate(made.tokens)})
    assert [left + right for left, right in merges] == made.tokens[256:]
    known = set(made.tokens)
    assert all(left in known and right in known for left, right in merges)
    assert len(made.counts) == 4000 - len(base)
    assert min(made.counts) >= 2


def test_every_new_token_encodes_to_itself(base: list[bytes], made: Augmented) -> None:
    encoding = rank_encoding("made", made.tokens)
    pairs = byte_pairs(made.tokens, "made")
    whole = 0
    for rank, token in enumerate(made.tokens[len(base) :], start=len(base)):
        assert pairs.encode(token) == [rank]
        try:
            text = token.decode()
        except UnicodeDecodeError:
            continue  # Part of a character, which no text is.
        whole += 1
        assert encoding.encode_ordinary(text) == [rank]
    assert whole > 2500


def test_tiktoken_and_gigatoken_encode_alike_and_as_was_counted(
    made: Augmented, texts: dict[str, list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "made.tiktoken"
    path.write_bytes(format_ranks(made.tokens))
    encoding = rank_encoding("made", made.tokens)
    fast = gigatoken.Tokenizer.from_tiktoken(str(path), pretokenizer="qwen2", special_tokens={})
    for script, ones in texts.items():
        rows = [encoding.encode_ordinary(text) for text in ones]
        assert [encoding.decode(row) for row in rows] == ones
        assert [list(fast.encode(text)) for text in ones] == rows
        counts = made.languages[script]
        assert (counts.documents, counts.num_bytes) == (2, sum(len(text.encode()) for text in ones))
        assert counts.tokens == sum(map(len, rows))
    # Texts that nothing was learned from.
    unseen = [text_of(script, 200, 9) for script in SCRIPTS]
    for text in unseen:
        row = encoding.encode_ordinary(text)
        assert encoding.decode(row) == text
        assert list(fast.encode(text)) == row


def test_it_beats_its_base_and_comes_near_to_a_vocabulary_of_its_own(
    base: list[bytes], made: Augmented, texts: dict[str, list[str]]
) -> None:
    for script in SCRIPTS:
        counts = made.languages[script]
        assert counts.tokens < counts.base_tokens * (1 if script == "latin" else 0.6), script
    scratch = tokenizers.Tokenizer(models.BPE())
    scratch.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    everything = [text for ones in texts.values() for text in ones]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    scratch.train_from_iterator(everything, trainer)
    assert scratch.get_vocab_size() == 4000
    theirs = sum(len(scratch.encode(text).ids) for text in everything)
    assert sum(one.tokens for one in made.languages.values()) <= 1.03 * theirs


def test_threads_and_order_make_no_difference(base: list[bytes], texts: dict[str, list[str]]) -> None:
    weights = {"thai": 7.3, "han": 0.1}
    expected = augmented(base, texts, 2000, weights=weights)
    for threads in (2, 5):
        assert augmented(base, texts, 2000, weights=weights, threads=threads).tokens == expected.tokens
    turned = {language: ones[::-1] for language, ones in reversed(texts.items())}
    again = augmented(base, turned, 2000, weights=weights, threads=3)
    assert (again.tokens, again.counts) == (expected.tokens, expected.counts)


def test_weights_are_shares_of_bytes(base: list[bytes], texts: dict[str, list[str]]) -> None:
    sizes = {"x": 1000, "y": 3000, "z": 500}
    found = factors(sizes, {"x": 2, "z": 1}) / 65536
    shares = found * list(sizes.values())
    assert shares.sum() == pytest.approx(4500, rel=1e-4)
    assert shares / shares.sum() == pytest.approx([0.5, 0.25, 0.25], rel=1e-4)
    assert factors(sizes, {}).tolist() == [1, 1, 1]
    # Each text five times over is the same share of the bytes.
    repeated = {**texts, "thai": texts["thai"] * 5}
    weights = {"thai": 2.0, "han": 1.0}
    plain = augmented(base, texts, 1500, weights=weights, min_count=1).tokens
    assert augmented(base, repeated, 1500, weights=weights, min_count=1).tokens == plain
    assert augmented(base, repeated, 1500, min_count=1).tokens != plain


def test_weights_shift_what_is_learned(base: list[bytes], texts: dict[str, list[str]]) -> None:
    def bytes_per_token(weights: dict[str, float]) -> dict[str, float]:
        languages = augmented(base, texts, 1500, weights=weights).languages
        return {language: one.num_bytes / one.tokens for language, one in languages.items()}

    heavy, light = bytes_per_token({"hebrew": 20.0}), bytes_per_token({"hebrew": 0.05})
    assert heavy["hebrew"] > 1.2 * light["hebrew"]
    assert all(heavy[script] < light[script] for script in ("cyrillic", "thai", "han"))


def test_it_stops_where_nothing_is_left(base: list[bytes]) -> None:
    texts = {"x": ["zyxzyx qqqq"]}
    assert augmented(BYTES, texts, 300, min_count=3).tokens[256:] == [b"qq"]
    assert augmented(BYTES, texts, 300, min_count=2).tokens[256:] == [b"qq", b"yx", b"zyx"]
    everything = augmented(BYTES, texts, 300, min_count=1).tokens
    assert {b"zyxzyx", b" qqqq"} <= set(everything)
    assert augmented(BYTES, texts, 300, min_count=1, max_token_bytes=2).tokens == [
        token for token in everything if len(token) <= 2
    ]


def test_a_very_long_word_takes_no_quadratic_time(base: list[bytes]) -> None:
    # A million letters in one pre-token: a list of its pairs that is scanned for each of them would take hours.
    tokens = augmented(BYTES, {"x": ["ab" * 500_000]}, 300).tokens
    assert tokens[256:] == [b"ab" * 2**power for power in range(7)]
    (row,) = [byte_pairs(tokens, "v").encode(b"ab" * 500_000)]
    assert len(row) == -(-500_000 // 64) + bin(500_000 % 64).count("1") - (500_000 % 64 > 0)


def test_signals_are_heard_while_the_corpus_is_encoded() -> None:
    letters = "abcdefghijklmnopqrst"
    corpus = counted({"x": [" ".join(map("".join, itertools.product(letters, repeat=4)))]})
    heard = []

    def hear(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) == 3:
            raise KeyboardInterrupt

    pairs = byte_pairs(BYTES, "v")

    def make() -> None:
        _native.MergeLearner(pairs, corpus.pretokens, np.ones(1, dtype=np.uint64), 1, 128, 2)
        signal.setitimer(signal.ITIMER_REAL, 0)

    previous = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        # Those that come while nobody listens are heard as one, after the call.
        with pytest.raises(KeyboardInterrupt):
            make()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_mistakes(base: list[bytes]) -> None:
    with pytest.raises(RefusedError, match="--size 700 must be above the 700 tokens of the base"):
        augmented(base, {"x": ["a"]}, 700)
    with pytest.raises(RefusedError, match="--weight zh: no text is in this language; there are x, y"):
        augmented(base, {"y": ["a"], "x": ["b"]}, 800, weights={"zh": 1.0})
    with pytest.raises(DataError, match="the base: the token of rank 256 is made of 3"):
        augmented([*BYTES, b"abc"], {"x": ["a"]}, 800)


def test_wrong_calls_of_the_kernel() -> None:
    corpus = counted({"x": ["ab ab"], "y": ["b"]})
    pairs = byte_pairs(BYTES, "v")
    one, two = np.ones(1, dtype=np.uint64), np.ones(2, dtype=np.uint64)
    with pytest.raises(ValueError, match="group 1 has no factor"):
        _native.MergeLearner(pairs, corpus.pretokens, one, 1, 128, 1)
    with pytest.raises(ValueError, match="has no factor"):
        _native.MergeLearner(pairs, corpus.pretokens, 0 * two, 1, 128, 1)
    with pytest.raises(ValueError, match="more than 64 bits can count"):
        _native.MergeLearner(pairs, corpus.pretokens, two * np.uint64(2**62), 1, 128, 1)
    with pytest.raises(ValueError, match="min_count must be at least 1"):
        _native.MergeLearner(pairs, corpus.pretokens, two, 0, 128, 1)
    with pytest.raises(TypeError, match="a token is not bytes"):
        _native.BytePairs(["a"])  # type: ignore[list-item]
