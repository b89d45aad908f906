"""What is in a corpus of dialogues, and one of its documents with what is learned of it marked."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.chat.chat_corpus import ChatCorpus, targets_prefix
from data_tools.chat.rendered import Rendered
from data_tools.corpus.inspect import format_summary, summarize
from data_tools.corpus.sidecar import PAIRS, corpus_path
from data_tools.io.plain_text import printable
from data_tools.tokenizer.qwen import QwenTokenizer, is_of_qwen

# Around what is learned where there is no colour.
MARKS = ("⟦", "⟧")
_LEARNED, _OTHER, _PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


def summarize_chat(prefix: str | Path) -> dict[str, Any]:
    """What `inspect.summarize` says, and under "chat" kind, labels, and how much is learned.

    Reads the targets whole.

    Raises:
        DataError: the corpus is missing or damaged.
    """
    corpus = ChatCorpus.open(prefix)
    targets = np.memmap(corpus_path(targets_prefix(prefix), "bin"), dtype=np.uint8, mode="r")
    summary = summarize(prefix)
    return {
        **summary,
        "fingerprint": corpus.fingerprint,
        "chat": {
            "kind": corpus.kind,
            "labels": corpus.content.labels,
            "end_of_turn": corpus.end_of_turn,
            "vocab_size": corpus.vocab_size,
            "truncated": corpus.content.truncated,
            "num_samples": corpus.num_documents // 2 if corpus.kind == PAIRS else corpus.num_documents,
            "num_targets": int(np.count_nonzero(targets)),
        },
    }


def format_chat_summary(summary: dict[str, Any]) -> str:
    """`summarize_chat`'s object as lines for a terminal."""
    chat = summary["chat"]
    share = chat["num_targets"] / summary["num_tokens"]
    rows = [
        (chat["kind"], f"{chat['num_samples']:,}"),
        ("learned", f"{chat['num_targets']:,} tokens, {100 * share:.1f} % (labels: {chat['labels']})"),
        ("cut", f"{chat['truncated']:,} documents at the end of a turn"),
    ]
    lines = [f"{name:<18} {value}" for name, value in rows]
    return "\n".join([*lines, format_summary(summary)])


def read_sample(prefix: str | Path, number: int) -> dict[str, Any]:
    """One document.

    Returns:
        a JSON object: document, num_tokens, tokens, targets (a 0 or 1 for each), text with what is learned between
        `MARKS` (null if the corpus is not in Qwen's vocabulary), and of pairs pair and which: chosen or rejected.
    Raises:
        DataError: there is no such document, or the corpus is missing or damaged.
    """
    corpus = ChatCorpus.open(prefix)
    document = corpus.document(number)
    of_pair = {"pair": number // 2, "which": ("chosen", "rejected")[number % 2]} if corpus.kind == PAIRS else {}
    return {
        "document": number,
        **of_pair,
        "num_tokens": len(document),
        "tokens": document.tokens.tolist(),
        "targets": document.targets.astype(int).tolist(),
        "text": _marked(corpus, document, *MARKS),
    }


def coloured_sample(prefix: str | Path, number: int) -> str | None:
    """A document's text for a terminal: what is learned in green, the rest dim; None as in `read_sample`."""
    corpus = ChatCorpus.open(prefix)
    text = _marked(corpus, corpus.document(number), _PLAIN + _LEARNED, _PLAIN + _OTHER)
    return None if text is None else f"{_OTHER}{text}{_PLAIN}"


def _marked(corpus: ChatCorpus, document: Rendered, opening: str, closing: str) -> str | None:
    if not is_of_qwen(corpus.tokenizer, corpus.sidecar.end_of_document):
        return None
    tokenizer = QwenTokenizer()
    pieces = []
    pairs = zip(document.tokens.tolist(), document.targets.tolist(), strict=True)
    for is_learned, run in groupby(pairs, key=lambda pair: pair[1]):
        text = printable(tokenizer.decode([token for token, _ in run]))
        pieces.append(f"{opening}{text}{closing}" if is_learned else text)
    return "".join(pieces)
