"""Corpora of another tokenizer than Qwen's: found before they are trained on as if they were of Qwen's."""

from __future__ import annotations

from collections.abc import Iterable

from data_tools.corpus.sidecar import Sidecar
from data_tools.tokenizer.qwen import NUM_TOKENS, is_of_qwen


def foreign_corpora(prefixes: Iterable[str], vocab_size: int) -> list[str]:
    """What to know before training on corpora whose tokens are not Qwen's: a line for each, none if all are.

    A model whose vocabulary has no room for Qwen's is never taken for one with Qwen's tokenizer; nothing is said.

    Args:
        prefixes: Of corpora.
        vocab_size: Rows of the model's embedding.
    Raises:
        DataError: if a corpus has no sidecar that can be read.
    """
    if vocab_size < NUM_TOKENS:
        return []
    sidecars = {prefix: Sidecar.read(prefix) for prefix in prefixes}
    return [
        f"data.blend={prefix}: not made with Qwen's tokenizer ({found(sidecar)}); the model learns its ids and "
        "its exports carry no tokenizer files: add those of your tokenizer"
        for prefix, sidecar in sidecars.items()
        if not is_of_qwen(sidecar.tokenizer, sidecar.end_of_document)
    ]


def found(sidecar: Sidecar) -> str:
    """What tells that a corpus is not Qwen's."""
    return f"but {sidecar.tokenizer}" if sidecar.tokenizer else f"its documents end with {sidecar.end_of_document}"
