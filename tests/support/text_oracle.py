"""The kernels' definitions in plain Python."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from data_tools.text.characters import CJK, LETTER, MARK, NUMBER, SPACE, SYMBOL, kind, terminals

MASK = 2**64 - 1
TERMINALS = tuple(terminals())
CLOSING = "\u201d\u2019\u300d\u300f\uff09\u300b\u3011"


def words(text: str) -> list[str]:
    out: list[str] = []
    kinds = [kind(character) for character in text]
    position = 0
    while position < len(text):
        start = position
        position += 1
        if kinds[start] == SPACE:
            continue
        if kinds[start] == SYMBOL:
            while text[position : position + 1] == text[start]:
                position += 1
        elif kinds[start] != CJK:
            while position < len(text):
                if kinds[position] in (LETTER, NUMBER, MARK):
                    position += 1
                elif any(
                    text[position] in joiners and kinds[position - 1] == kinds[position + 1] == wanted
                    for joiners, wanted in (("'\u2019", LETTER), (".,", NUMBER))
                    if position + 1 < len(text)
                ):
                    position += 2
                else:
                    break
            position = _end_of_url(text, start, position)
        out.append(text[start:position])
    return out


def _end_of_url(text: str, start: int, position: int) -> int:
    """Where the URL ends that the word from start to position begins; position if it begins none."""
    word, rest = text[start:position], text[position:]
    has_scheme = re.fullmatch("[A-Za-z][A-Za-z0-9]*", word) and re.match("://[A-Za-z0-9/]", rest)
    if not has_scheme and not (re.fullmatch("[wW]{3}", word) and re.match(r"\.[A-Za-z0-9]", rest)):
        return position
    end = open_brackets = 0
    while end < len(rest) and "!" <= rest[end] <= "~" and rest[end] not in "\"'<>[]\\^`{|}":
        open_brackets += (rest[end] == "(") - (rest[end] == ")")
        if open_brackets < 0:
            break
        end += 1
    return position + len(rest[:end].rstrip(".,;:!?*_~("))


def mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_bytes(data: bytes) -> int:
    h = (len(data) * 0x9E3779B97F4A7C15) & MASK
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        product = (h ^ word ^ 0x9E3779B97F4A7C15) * 0x6A09E667F3BCC909
        h = (product >> 64) ^ (product & MASK)
    return mix64(h)


def murmur3_128(data: bytes) -> tuple[int, int]:
    """MurmurHash3_x64_128 with seed 0."""

    def rotate(x: int, bits: int) -> int:
        return ((x << bits) | (x >> (64 - bits))) & MASK

    def finish(k: int) -> int:
        k = ((k ^ (k >> 33)) * 0xFF51AFD7ED558CCD) & MASK
        k = ((k ^ (k >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
        return k ^ (k >> 33)

    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = 0
    full = len(data) // 16 * 16
    for start in range(0, full, 16):
        k1 = int.from_bytes(data[start : start + 8], "little")
        k2 = int.from_bytes(data[start + 8 : start + 16], "little")
        h1 ^= rotate(k1 * c1 & MASK, 31) * c2 & MASK
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & MASK
        h2 ^= rotate(k2 * c2 & MASK, 33) * c1 & MASK
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    tail = data[full:]
    if len(tail) > 8:
        h2 ^= rotate(int.from_bytes(tail[8:], "little") * c2 & MASK, 33) * c1 & MASK
    if tail:
        h1 ^= rotate(int.from_bytes(tail[:8], "little") * c1 & MASK, 31) * c2 & MASK
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1, h2 = finish(h1), finish(h2)
    h1 = (h1 + h2) & MASK
    return h1, (h2 + h1) & MASK


def _duplicates(elements: Sequence[str]) -> tuple[int, int]:
    seen: set[str] = set()
    count = characters = 0
    for element in elements:
        if element in seen:
            count += 1
            characters += len(element)
        seen.add(element)
    return count, characters


def _joined(parts: Sequence[str]) -> str:
    out = parts[0]
    for previous, word in pairwise(parts):
        out += word if CJK in (kind(previous[-1]), kind(word[0])) else " " + word
    return out


def _top(text_words: Sequence[str], n: int) -> int:
    grams = [tuple(text_words[i : i + n]) for i in range(len(text_words) - n + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    return len(_joined(gram)) * count


def _duplicate_grams(text_words: Sequence[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    characters = position = 0
    while position <= len(text_words) - n:
        gram = tuple(text_words[position : position + n])
        if gram in seen:
            characters += len("".join(gram))
            position += n
        else:
            seen.add(gram)
            position += 1
    return characters


def _ends_sentence(line: str) -> bool:
    return line.endswith(TERMINALS) or (line[-1] in CLOSING and line[-2:-1] in ("\u3002", "\uff01", "\uff1f"))


def statistics(text: str, stop_words: Sequence[str], short_line_length: int) -> dict[str, int]:
    text_words = words(text)
    kinds = [{kind(character) for character in word} for word in text_words]
    plain = [word for word, found in zip(text_words, kinds, strict=True) if found & {LETTER, NUMBER, CJK}]
    lines = text.splitlines()
    paragraphs = re.split(r"\n{2,}", text.strip())
    segments = re.split(r"\n+", text)
    full_lines = [line for line in text.split("\n") if line.strip()]
    widths = [sum(3 if kind(character) == CJK else 1 for character in line) for line in full_lines]
    return {
        "characters": len(text),
        "words": len(text_words),
        "plain_words": len(plain),
        "plain_word_characters": sum(map(len, plain)),
        "cjk_words": sum(CJK in found for found in kinds),
        "letter_words": sum(bool(found & {LETTER, CJK}) for found in kinds),
        "spaced_words": len(text.split()),
        "spaced_letter_words": sum(any(kind(c) in (LETTER, CJK) for c in word) for word in text.split()),
        "stop_words": len(set(stop_words) & set(text_words)),
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("\u2026"),
        "lines": len(lines),
        "bullet_lines": sum(line.lstrip().startswith(("\u2022", "-")) for line in lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "\u2026")) for line in lines),
        "paragraphs": len(paragraphs),
        "duplicate_paragraphs": _duplicates(paragraphs)[0],
        "duplicate_paragraph_characters": _duplicates(paragraphs)[1],
        "segments": len(segments),
        "duplicate_segments": _duplicates(segments)[0],
        "duplicate_segment_characters": _duplicates(segments)[1],
        "full_lines": len(full_lines),
        "punctuated_lines": sum(map(_ends_sentence, full_lines)),
        "short_lines": sum(width <= short_line_length for width in widths),
        "duplicate_full_line_characters": _duplicates(full_lines)[1],
        "newlines": text.count("\n"),
        **{f"top_{n}_gram": _top(text_words, n) for n in range(2, 5)},
        **{f"duplicate_{n}_grams": _duplicate_grams(text_words, n) for n in range(5, 11)},
    }


def plain_words(normalized: str) -> list[str]:
    return [word for word in words(normalized) if {kind(c) for c in word} & {LETTER, NUMBER, CJK}]


def shingles(normalized: str, n: int) -> Iterator[int]:
    """mix64 of the polynomial in B over the hashes of n words; a shorter text is one shingle."""
    hashes = [hash_bytes(word.encode()) for word in plain_words(normalized)]
    n = min(n, len(hashes))
    for start in range(len(hashes) - n + 1 if n else 0):
        polynomial = 0
        for value in hashes[start : start + n]:
            polynomial = (polynomial * 0xD1342543DE82EF95 + value) & MASK
        yield mix64(polynomial)


def ngram_features(text: str, max_ngram: int, bits: int) -> dict[int, float]:
    """Bucket -> sqrt(n-grams in it / all n-grams) in single precision, buckets in the order of their first n-gram."""
    hashes = [hash_bytes(word.encode()) for word in words(text)]
    counts: Counter[int] = Counter()
    for end in range(1, len(hashes) + 1):
        for n in range(1, min(max_ngram, end) + 1):
            polynomial = 0
            for value in hashes[end - n : end]:
                polynomial = (polynomial * 0xD1342543DE82EF95 + value) & MASK
            counts[mix64(polynomial) >> (64 - bits)] += 1
    return {bucket: float(np.float32(math.sqrt(count / counts.total()))) for bucket, count in counts.items()}


def logistic_loss(
    rows: Sequence[dict[int, float]], labels: Sequence[int], weights: Sequence[float]
) -> tuple[float, list[float]]:
    """Sum of log(1 + exp(-y z)) and its gradient; the last weight is the intercept."""
    loss, gradient = 0.0, [0.0] * len(weights)
    for row, label in zip(rows, labels, strict=True):
        z = weights[-1] + sum(weights[column] * value for column, value in row.items())
        probability = 1 / (1 + math.exp(-z))
        loss -= math.log(probability if label else 1 - probability)
        for column, value in [*row.items(), (-1, 1.0)]:
            gradient[column] += (probability - label) * value
    return loss, gradient


def normalize(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
