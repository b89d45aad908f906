"""What is in a corpus, for people and as JSON."""

from pathlib import Path
from typing import Any

import numpy as np

from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import corpus_path
from data_tools.errors import DataError
from data_tools.tokenizer.qwen import QwenTokenizer, is_of_qwen

_SAMPLE_TOKENS = 64


def summarize(prefix: str | Path) -> dict[str, Any]:
    """Counts, document lengths, origin and the beginning of the first document.

    Reads the index and a few tokens, not the whole corpus.

    Returns:
        a JSON object; lengths are in tokens, end-of-document token included.
    Raises:
        DataError: the corpus is missing or damaged.
    """
    corpus = Corpus.open(prefix)
    index = _matching_index(prefix, corpus)
    lengths = index.document_lengths()
    sidecar = corpus.sidecar
    files = {
        suffix: {"bytes": digest.size_bytes, "sha256": digest.sha256}
        for suffix, digest in (("bin", sidecar.bin), ("idx", sidecar.idx), ("crc", sidecar.crc))
    }
    start, length = index.document(0)
    return {
        "prefix": str(prefix),
        "num_documents": sidecar.num_documents,
        "num_tokens": sidecar.num_tokens,
        "document_tokens": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        "dtype": sidecar.dtype,
        "end_of_document": sidecar.end_of_document,
        "tokenizer": sidecar.tokenizer,
        "shuffle_seed": sidecar.shuffle_seed,
        "records_in": sidecar.records_in,
        "rejected": dict(sidecar.rejected),
        "fingerprint": sidecar.fingerprint,
        "files": files,
        "inputs": [
            {"path": file.path, "size_bytes": file.size_bytes, "mtime_ns": file.mtime_ns} for file in sidecar.inputs
        ],
        "tool_version": sidecar.tool_version,
        "created": sidecar.created,
        "sample": _text(corpus, corpus.tokens(start, min(length, _SAMPLE_TOKENS)).tolist()),
    }


def read_document(prefix: str | Path, number: int) -> dict[str, Any]:
    """One document of a corpus.

    Returns:
        a JSON object: document, start (first token in .bin), num_tokens, tokens, and text without the end-of-document
        token (null if the corpus is not in Qwen's vocabulary).
    Raises:
        DataError: there is no such document, or the corpus is missing or damaged.
    """
    corpus = Corpus.open(prefix)
    start, length = _matching_index(prefix, corpus).document(number)
    tokens = corpus.tokens(start, length).tolist()
    return {
        "document": number,
        "start": start,
        "num_tokens": length,
        "tokens": tokens,
        "text": _text(corpus, tokens),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """`summarize`'s object as lines for a terminal."""
    lengths = summary["document_tokens"]
    token_counts = (
        f"min {lengths['min']:,}, median {lengths['median']:,.0f}, mean {lengths['mean']:,.1f}, max {lengths['max']:,}"
    )
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in summary["rejected"].items()) or "none"
    seed = summary["shuffle_seed"]
    rows = [
        ("documents", f"{summary['num_documents']:,}"),
        ("tokens", f"{summary['num_tokens']:,} ({summary['dtype']})"),
        ("tokens a document", token_counts),
        ("records read", f"{summary['records_in']:,}; rejected: {rejected}"),
        ("order", "as in the input or unknown" if seed is None else f"shuffled, seed {seed}"),
        ("tokenizer", summary["tokenizer"] or "unknown (imported)"),
        ("end of document", str(summary["end_of_document"])),
        ("fingerprint", summary["fingerprint"]),
        *((f".{suffix}", f"{file['bytes']:,} bytes") for suffix, file in summary["files"].items()),
        *(("input", f"{file['path']} ({file['size_bytes']:,} bytes)") for file in summary["inputs"][:10]),
        ("written", f"{summary['created']} by qwen-data {summary['tool_version']}"),
    ]
    if len(summary["inputs"]) > 10:
        rows.append(("input", f"... {len(summary['inputs'])} files in all (--json lists them)"))
    if summary["sample"] is not None:
        rows.append(("document 0", repr(summary["sample"])))
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def _matching_index(prefix: str | Path, corpus: Corpus) -> CorpusIndex:
    index = CorpusIndex.open(prefix)
    if (index.num_documents, index.num_tokens) != (corpus.num_documents, corpus.num_tokens):
        raise DataError(
            f"{index.path}: {index.num_documents} documents with {index.num_tokens} tokens, but "
            f"{corpus_path(prefix, 'json')} says {corpus.num_documents} and {corpus.num_tokens}; the index belongs to "
            "another corpus: restore it or make the corpus again"
        )
    return index


def _text(corpus: Corpus, tokens: list[int]) -> str | None:
    """The tokens as text; None if the vocabulary is another one, as far as can be known."""
    if tokens and tokens[-1] == corpus.end_of_document:
        tokens = tokens[:-1]
    if not is_of_qwen(corpus.sidecar.tokenizer, corpus.end_of_document):
        return None
    try:
        return QwenTokenizer().decode(tokens)
    except DataError:
        if corpus.sidecar.tokenizer is None:
            return None
        raise
