"""Chat corpora of a blend, opened and compared without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.chat.rendered import Rendered
from data_tools.io.open_files import allow_open_files
from qwen_megatron.errors import DataError

# .bin and .crc of tokens and of targets stay open.
FILES_EACH = 4


def open_chat_corpora(prefixes: Iterable[str], kind: str, vocab_size: int | None) -> dict[str, ChatCorpus]:
    """Opens corpora of one kind.

    Args:
        prefixes: Of the corpora.
        kind: `dialogues`, `pairs` or `prompts`.
        vocab_size: Rows of the model's vocabulary; None: any id will do.
    Raises:
        DataError: if one is missing, damaged, of another kind, or holds ids that the model has not, or there are more
            of them than this process may have files open.
    """
    prefixes = list(prefixes)
    allow_open_files(FILES_EACH * len(prefixes), f"data.blend: its {len(prefixes)} corpora")
    corpora = {prefix: ChatCorpus.open(Path(prefix), kind=kind) for prefix in prefixes}
    for prefix, corpus in corpora.items():
        if vocab_size is not None and corpus.vocab_size > vocab_size:
            raise DataError(
                f"{prefix}: has token ids up to {corpus.vocab_size - 1}, but model.vocab_size={vocab_size}; train a "
                "model with the corpus's vocabulary, or make the corpus with the model's"
            )
    check_alike(corpora)
    return corpora


def check_alike(corpora: Mapping[str, ChatCorpus]) -> None:
    """Refuses corpora of several tokenizers.

    Raises:
        DataError: naming two that differ.
    """
    known = {prefix: corpus.tokenizer for prefix, corpus in corpora.items() if corpus.tokenizer is not None}
    if len(set(known.values())) > 1:
        (first, expected), *rest = known.items()
        other = next(prefix for prefix, tokenizer in rest if tokenizer != expected)
        raise DataError(
            f"corpora must not differ in tokenizers: {first} has {expected}, {other} has {known[other]}; make them "
            "with one tokenizer"
        )


def checked_document(corpus: ChatCorpus, prefix: str, index: int, vocab_size: int | None) -> Rendered:
    """A document whose ids are all in the model's vocabulary.

    Raises:
        DataError: if a file is damaged, or an id is none: its sidecar then says what is not so.
    """
    document = corpus.document(index)
    if vocab_size is not None and len(document) and int(document.tokens.max()) >= vocab_size:
        place = int(np.argmax(document.tokens >= vocab_size))
        raise DataError(
            f"{prefix}: token {place} of document {index} has id {document.tokens[place]}, but "
            f"model.vocab_size={vocab_size}; the corpus is damaged: run qwen-data verify {prefix}"
        )
    return document
