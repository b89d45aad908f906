"""Small vocabularies and texts of several scripts, and byte-pair encoding as plainly as it can be written."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import regex

from data_tools.tokenizer.qwen import PATTERN

BYTES = [bytes([byte]) for byte in range(256)]

# Letters of a few scripts: first ones and following ones of a syllable.
_SYLLABLES = {
    "latin": ("bcdfghklmnprstvw", "aeiou"),
    "cyrillic": ("бвгджзклмнпрст", "аеиоуы"),
    "hebrew": ("אבגדהוזחט", "יכלמנס"),
    "thai": ("กขคงจชซดตถท", "าเแโะ"),
    "han": ("的一是不了人我在有他这中大来上国", "个到说们为子和你地出道也时年得就"),
}


def text_of(script: str, num_words: int, seed: int = 1) -> str:
    """Sentences of made-up words, a few of them frequent and most of them rare, as words of languages are."""
    chooser = random.Random(f"{script}-{seed}")
    first, second = _SYLLABLES[script]
    lexicon = [
        "".join(chooser.choice(first) + chooser.choice(second) for _ in range(chooser.randint(1, 4)))
        for _ in range(2000)
    ]
    ranks = [1 / (place + 1) for place in range(len(lexicon))]
    words = chooser.choices(lexicon, ranks, k=num_words)
    gap = "" if script in ("thai", "han") else " "
    sentences = [gap.join(words[start : start + 9]) for start in range(0, num_words, 9)]
    return "".join(f"{sentence}, {chooser.randint(0, 99)}.\n" for sentence in sentences)


def encoded_below(word: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """tiktoken's rule: the two neighbours whose union has the lowest rank are joined, the leftmost first."""
    pieces = [word[place : place + 1] for place in range(len(word))]
    while True:
        unions = [(ranks[a + b], place) for place, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in ranks]
        if not unions:
            return pieces
        _, place = min(unions)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


def learned(
    base: Sequence[bytes], texts: Iterable[tuple[str, int]], size: int, min_count: int, max_token_bytes: int
) -> list[bytes]:
    """What augmentation must give: everything is encoded and counted again for every token.

    Args:
        base: tokens by rank.
        texts: NFC, each with the factor of its occurrences.
        size, min_count, max_token_bytes: as in LearningOptions.
    """
    words = Counter((word.encode(), factor) for text, factor in texts for word in regex.findall(PATTERN, text))
    tokens = list(base)
    while len(tokens) < size:
        ranks = {token: rank for rank, token in enumerate(tokens)}
        counts: Counter[tuple[int, int]] = Counter()
        weights: Counter[tuple[int, int]] = Counter()
        for (word, factor), count in words.items():
            pieces = [ranks[piece] for piece in encoded_below(word, ranks)]
            for pair in itertools.pairwise(pieces):
                counts[pair] += count
                weights[pair] += count * factor
        allowed = [
            pair
            for pair, count in counts.items()
            if count >= min_count and len(tokens[pair[0]] + tokens[pair[1]]) <= max_token_bytes
        ]
        if not allowed:
            break
        left, right = min(allowed, key=lambda pair: (-weights[pair], pair))
        tokens.append(tokens[left] + tokens[right])
    return tokens
