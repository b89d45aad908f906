"""Perplexity of a text at several lengths of context, with several ways of reading beyond the native one: Table 3.

Source: Qwen Technical Report (arXiv 2309.16609), section 2.3.2 and Table 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.corpus.reader import Corpus
from data_tools.io.progress import progress_bar
from data_tools.readers.inputs import read_records
from data_tools.readers.record import BadRecord, ReadOptions
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.inference.extension import parse_extension
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.vocabulary import Vocabulary

Ids = npt.NDArray[np.int64]

# Files that hold text; everything else is the prefix of a corpus or a .npy file.
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
LARGEST_DOCUMENT = 1 << 30
# Tokens that are scored between two moves of the progress bar.
SHOWN_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """One cell of the table.

    Attributes:
        extend: How the model reads beyond its native length.
        length: Tokens of each piece of text.
        perplexity: exp of the mean loss of a token in its piece.
        num_tokens: That the mean is over; the first of a piece is not predicted.
    """

    extend: str
    length: int
    perplexity: float
    num_tokens: int


def read_tokens(source: str, vocabulary: Vocabulary | None, count: int) -> Ids:
    """The first tokens of a text, int64 [n].

    Args:
        source: A file of text (.txt, .md; .jsonl, .parquet with a field `text`), a .npy file of int64 ids, or the
            prefix of a corpus. Documents follow each other, each with what ends it.
        vocabulary: The model's tokens; None where they are not known, then text is refused.
        count: Tokens wanted at most.
    Raises:
        DataError: if it cannot be read, or is text and the tokens are not known.
    """
    path = Path(source)
    if source.endswith(".npy"):
        try:
            ids = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: is not a readable .npy file of ids ({error})") from error
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int64:
            raise DataError(f"{path}: must hold int64 ids; use ids.astype('int64')")
        return np.array(ids.reshape(-1)[:count])
    if not source.endswith(TEXT_SUFFIXES):
        corpus = Corpus.open(source)
        return corpus.tokens(0, min(count, corpus.num_tokens))
    if vocabulary is None:
        raise DataError(f"{source}: is text, but the model's tokens are not known; give ids or a corpus")
    found: list[int] = []
    for text in texts_of(source):
        found += [*vocabulary.encode(text), *vocabulary.end_ids[:1]]
        if len(found) >= count:
            break
    return np.array(found[:count], dtype=np.int64)


def texts_of(source: str) -> Iterator[str]:
    """The documents of a file of text."""
    if source.endswith((".txt", ".md")):
        try:
            yield Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{source}: is not readable text in UTF-8 ({error})") from error
        return
    for file, record in read_records(source, ReadOptions(text_key="text", max_document_bytes=LARGEST_DOCUMENT)):
        if isinstance(record, BadRecord):
            raise DataError(f"{file}: record {record.line}: {record.detail} ({record.reason})")
        yield record.text


def measure(
    generator: Generator, ids: Ids, lengths: Sequence[int], extensions: Sequence[str], windows: tuple[int, ...] | None
) -> list[Perplexity]:
    """The table, row by row. The same tokens are read at every length, in pieces that do not overlap.

    Args:
        generator: Model. Collective over the ranks of its replica.
        ids: [n], at least as many as the largest length.
        lengths: Tokens of a piece.
        extensions: By name; see `inference.extension`.
        windows: Of each layer; None where the extension decides.
    Raises:
        ConfigError: if the text is shorter than the longest length, or a name is wrong.
    """
    longest = max(lengths)
    whole = math.lcm(*lengths)
    count = len(ids) // whole * whole or len(ids) // longest * longest
    if count == 0:
        raise ConfigError(f"--lengths: {longest} tokens a piece, but the text has {len(ids)}; give more text")
    parsed = {name: parse_extension(name) for name in extensions}
    rows = []
    with progress_bar("perplexity", count * len(lengths) * len(extensions), unit="tokens") as progress:
        for (name, extension), length in itertools.product(parsed.items(), lengths):
            generator.read_with(extension, longest=longest, windows=windows)
            total, num_tokens = 0.0, 0
            together = max(1, SHOWN_TOKENS // length) * length
            for start in range(0, count // length * length, together):
                pieces = ids[start : min(start + together, count // length * length)].reshape(-1, length)
                scores = generator.score([(piece[:1].tolist(), piece[1:].tolist()) for piece in pieces])
                total += sum(score.log_probability for score in scores)
                num_tokens += sum(score.num_tokens for score in scores)
                progress.advance(pieces.size)
            perplexity = math.exp(min(-total / num_tokens, 700.0))
            rows.append(Perplexity(extend=name, length=length, perplexity=perplexity, num_tokens=num_tokens))
    return rows
