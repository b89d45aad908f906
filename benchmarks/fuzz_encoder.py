"""Made-up texts through our encoder, tiktoken and gigatoken, until a number of them is equal or one differs.

  nice -n 19 python benchmarks/fuzz_encoder.py --texts 10000000 --seed 1

A text is a few pieces: words of many scripts cut anywhere, tokens of the vocabulary, what the pattern treats apart, any
code points; or, one in five, a hundred characters of four kinds that the pattern tells apart. Two million take some
minutes of one core; a run with another seed tries others.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
from bench_tokenize import gigatoken

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_tools.text.normalization import nfc
from data_tools.tokenizer.encoder import NativeEncoder, TiktokenEncoder
from data_tools.tokenizer.qwen import read_vocabulary, vocab_path
from tests.support.scripts import SENTENCES

TRAPS = (
    *("'s", "'LL", "'ſ", "'K", " ", "  ", "\n", "\r\n", " \n ", "\t", "\u3000", "\u0085", "１", "Ⅷ", "e\u0301"),
    *("<|endoftext|>", "<|im_start|>", "\u200d", "\x00", "\ufeff", "!!", "K", "ǅ", "ª", "_"),
    *("=" * 17, "a" * 40, " " * 70),
)
# Texts that are compared at a time.
BATCH = 5000


class Texts:
    """Texts that a seed determines."""

    def __init__(self, seed: int) -> None:
        self._chooser = random.Random(seed)
        tokens = (token.decode(errors="ignore") for token in read_vocabulary(vocab_path()))
        self._tokens = [token for token in tokens if token]

    def text(self) -> str:
        """One more, in NFC."""
        if self._chooser.random() < 0.2:
            kinds = self._chooser.choices("ast'1 \t\n\r\v!\u201cé", k=4)
            return nfc("".join(self._chooser.choices(kinds, k=self._chooser.randrange(60, 200))))
        return nfc("".join(self._piece() for _ in range(self._chooser.randrange(1, 9))))

    def _piece(self) -> str:
        chooser = self._chooser
        kind = chooser.randrange(8)
        if kind < 3:
            sentence = chooser.choice(SENTENCES)
            begin = chooser.randrange(len(sentence))
            return sentence[begin : begin + chooser.randrange(1, 25)]
        if kind < 6:
            return chooser.choice(self._tokens)
        if kind == 6:
            return chooser.choice(TRAPS)
        points = (chooser.randrange(0x110000 if chooser.random() < 0.2 else 0x3000) for _ in range(4))
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def is_assigned(text: str) -> bool:
    """Whether Python knows all code points: gigatoken has a newer Unicode than tiktoken, with more letters."""
    return text.isascii() or all(unicodedata.category(character) != "Cn" for character in text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    texts = Texts(arguments.seed)
    ours, reference, peer = NativeEncoder(), TiktokenEncoder(), gigatoken()
    start = time.perf_counter()
    for done in range(0, arguments.texts, BATCH):
        batch = [texts.text() for _ in range(min(BATCH, arguments.texts - done))]
        found, expected = ours.encode_batch(batch), reference.encode_batch(batch)
        ends = np.cumsum(found.lengths).tolist()
        rows = [found.tokens[end - length : end] for end, length in zip(ends, found.lengths.tolist(), strict=True)]
        is_equal = np.array_equal(found.tokens, expected.tokens) and np.array_equal(found.lengths, expected.lengths)
        for text, ids in zip(batch, rows, strict=True):
            theirs = peer.encode(text) if is_assigned(text) else ids
            if not np.array_equal(ids, theirs) or not is_equal:
                right = reference.encode_batch([text]).tokens
                if np.array_equal(ids, right) and np.array_equal(ids, theirs):
                    continue  # Another text of the batch is the one.
                print(f"{text!r}: ours {ids.tolist()}, tiktoken {right.tolist()}, gigatoken {[*map(int, theirs)]}")
                return 1
        if done // BATCH % 20 == 19:
            print(f"{done + len(batch):,} equal, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{arguments.texts:,} texts of seed {arguments.seed} are equal, {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
