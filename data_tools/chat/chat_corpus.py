"""A corpus of dialogues: a Megatron corpus of their tokens, and one of the same documents with a 0 or 1 for each.

PREFIX is the corpus of tokens; its sidecar says what a document is and names, by fingerprint, PREFIX.targets, which
says what is learned. Both are opened, read and verified as any corpus is.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_tools.chat.rendered import Rendered
from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.reader import Corpus
from data_tools.corpus.sidecar import ChatContent, Sidecar, corpus_path
from data_tools.errors import DataError

TARGETS = "targets"


class ChatCorpus:
    """An open corpus of dialogues, pairs or prompts.

    Pickling sends the prefix and the fingerprint; unpickling opens the files again and refuses a corpus that was
    rebuilt in between.

    Attributes:
        prefix: path without suffix.
        sidecar: of the tokens.
        content: what it says of dialogues: kind, rule of labels.
        kind: dialogues; pairs, whose documents 2k and 2k + 1 are the chosen and the rejected dialogue of pair k; or
            prompts, which end with an opened turn of the assistant.
        num_documents: documents, two for each pair.
        lengths: [num_documents] int32 tokens of each.
        fingerprint: identity of the content: kind, tokens, where documents end, targets.
        tokenizer: fingerprint of the tokenizer; None if that is not known.
        end_of_turn: token id that ends a turn; None if there is none.
        vocab_size: every token id is below it.
    """

    def __init__(self, prefix: str | Path, tokens: Corpus, targets: Corpus, content: ChatContent) -> None:
        """Use `ChatCorpus.open`."""
        self.prefix = Path(prefix)
        self.sidecar = tokens.sidecar
        self.content = content
        self.kind = content.kind
        self.num_documents = tokens.num_documents
        self.tokenizer = tokens.sidecar.tokenizer
        self.end_of_turn = content.end_of_turn
        self.vocab_size = content.vocab_size
        self._tokens, self._targets = tokens, targets
        index = CorpusIndex.open(prefix)
        if (index.num_documents, index.num_tokens) != (tokens.num_documents, tokens.num_tokens):
            raise DataError(
                f"{index.path}: {index.num_documents} documents with {index.num_tokens} tokens, the sidecar says "
                f"{tokens.num_documents} and {tokens.num_tokens}; run: qwen-data verify {prefix}"
            )
        ends = index.document_ends()
        self.lengths: npt.NDArray[np.int32] = np.diff(ends, prepend=0).astype(np.int32)
        self._starts = ends - self.lengths
        self.fingerprint = _fingerprint(tokens.sidecar, content)

    @classmethod
    def open(cls, prefix: str | Path, *, kind: str | None = None) -> "ChatCorpus":
        """Opens both corpora; reads their sidecars and the index.

        Args:
            prefix: path of the corpus without suffix.
            kind: the kind that it must be of; any if None.
        Raises:
            DataError: it is missing or damaged, of text, or of another kind; says what to run.
        """
        if not corpus_path(prefix, "json").exists():
            raise DataError(f"{corpus_path(prefix, 'json')}: no corpus there; {_how_to_make(kind, prefix)}")
        tokens = Corpus.open(prefix)
        content = tokens.sidecar.chat
        if content is None or kind not in (None, content.kind):
            found = "text" if content is None else content.kind
            wanted = kind or "dialogues, pairs or prompts"
            raise DataError(f"{prefix}: is a corpus of {found}, not of {wanted}; {_how_to_make(kind, prefix)}")
        targets = Corpus.open(targets_prefix(prefix))
        if (targets.fingerprint, targets.num_tokens) != (content.targets, tokens.num_tokens):
            raise DataError(
                f"{targets_prefix(prefix)}: does not belong to {corpus_path(prefix, 'json')}: {targets.num_tokens} "
                f"entries, fingerprint {targets.fingerprint} instead of {content.targets}; restore it or "
                "make the corpus again"
            )
        return cls(prefix, tokens, targets, content)

    def document(self, index: int) -> Rendered:
        """Document ``index``, its blocks verified at their first read.

        Raises:
            DataError: there is no such document, a block fails its checksum, or a file cannot be read.
        """
        if not 0 <= index < self.num_documents:
            raise DataError(f"{self.prefix}: document {index} does not exist, there are {self.num_documents}")
        start, length = int(self._starts[index]), int(self.lengths[index])
        return Rendered(
            tokens=self._tokens.tokens(start, length).astype(np.int32),
            targets=self._targets.tokens(start, length).astype(np.bool_),
        )

    def check_unchanged(self) -> None:
        """See `Corpus.check_unchanged`."""
        self._tokens.check_unchanged()
        self._targets.check_unchanged()

    def verify_again(self) -> None:
        """See `Corpus.verify_again`."""
        self._tokens.verify_again()
        self._targets.verify_again()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.prefix, self.fingerprint)


def targets_prefix(prefix: str | Path) -> Path:
    """Where the corpus of targets is."""
    return corpus_path(prefix, TARGETS)


def _reopen(prefix: Path, fingerprint: str) -> ChatCorpus:
    corpus = ChatCorpus.open(prefix)
    if corpus.fingerprint != fingerprint:
        raise DataError(
            f"{prefix}: the corpus was rebuilt while it was in use: fingerprint {corpus.fingerprint}, was "
            f"{fingerprint}; start again with one or the other"
        )
    return corpus


def _fingerprint(sidecar: Sidecar, content: ChatContent) -> str:
    whole = "\n".join((sidecar.fingerprint, sidecar.idx.sha256, content.targets))
    return f"{content.kind}-sha256-{hashlib.sha256(whole.encode()).hexdigest()}"


def _how_to_make(kind: str | None, prefix: str | Path) -> str:
    option = f" --kind {kind}" if kind else ""
    return f"make one with: qwen-data chat INPUT.jsonl{option} --output {prefix}"
