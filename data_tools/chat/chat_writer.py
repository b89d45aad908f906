"""Writing a corpus of dialogues: both of its corpora beside their names first, then put there, the sidecar last."""

import os
from array import array
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_tools import _native
from data_tools.chat.chat_corpus import targets_prefix
from data_tools.chat.rendered import Rendered
from data_tools.chat.rendering import ASSISTANT_LABELS
from data_tools.corpus.index import DTYPE_CODES
from data_tools.corpus.lock import corpus_lock
from data_tools.corpus.sidecar import (
    CHAT_KINDS,
    PAIRS,
    ChatContent,
    FileDigest,
    InputFile,
    Sidecar,
    corpus_path,
)
from data_tools.corpus.writer import TOKEN_DTYPE, prepare_place, publish, require_absent, scratch_folder
from data_tools.errors import DataError
from data_tools.io.atomic_file import sync_file, write_atomically
from data_tools.io.checksums import StreamChecksums, sha256_of_file
from data_tools.io.system_errors import naming
from data_tools.version import version

TARGET_DTYPE = np.dtype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where documents come from, for the sidecar.

    Attributes:
        shuffle_seed: of their order; None if it is that of the input.
        rejected: reason -> records that gave no document.
        truncated: documents that were cut at the end of a turn.
        inputs: the files that were read.
    """

    shuffle_seed: int | None = None
    rejected: Mapping[str, int] | None = None
    truncated: int = 0
    inputs: tuple[InputFile, ...] = ()


def write_chat_corpus(
    prefix: str | Path,
    documents: Iterable[Rendered],
    *,
    kind: str,
    tokenizer: str | None = None,
    end_of_turn: int | None = None,
    end_of_document: int = 0,
    labels: str = ASSISTANT_LABELS,
    origin: Origin | None = None,
    overwrite: bool = False,
) -> Sidecar:
    """Makes the corpora PREFIX and PREFIX.targets; whole or not at all, of any vocabulary.

    Args:
        prefix: path of the corpus without suffix; its folder is created if need be.
        documents: in corpus order; of pairs the chosen and the rejected dialogue in turn.
        kind: one of `sidecar.CHAT_KINDS`.
        tokenizer: fingerprint of the tokenizer, if there is one.
        end_of_turn: token id that ends a turn, if there is one.
        end_of_document: what rows are filled up with in this vocabulary; no document ends with it.
        labels: the rule that the targets follow.
        origin: counts and files, for the sidecar; nothing was rejected if None.
        overwrite: replace a corpus that is there.
    Returns:
        the sidecar.
    Raises:
        DataError: no documents, an odd number of them for pairs, an empty or negative one, or the corpus exists.
        OSError: the disk is full or fails. Nothing is left behind.
    """
    if kind not in CHAT_KINDS:
        raise DataError(f"kind={kind!r:.100}: must be one of {', '.join(CHAT_KINDS)}")
    prepare_place(prefix)
    with corpus_lock(prefix):
        require_absent(prefix, overwrite=overwrite)
        require_absent(targets_prefix(prefix), overwrite=overwrite)
        with scratch_folder(prefix) as folder, naming(corpus_path(prefix, "bin")):
            return _write(
                Path(prefix), folder, documents, kind, tokenizer, end_of_turn, end_of_document, labels, origin
            )


def _write(
    prefix: Path,
    folder: Path,
    documents: Iterable[Rendered],
    kind: str,
    tokenizer: str | None,
    end_of_turn: int | None,
    end_of_document: int,
    labels: str,
    origin: Origin | None,
) -> Sidecar:
    origin = origin or Origin()
    places = {name: folder / name for name in ("tokens", "targets")}
    for place in places.values():
        place.mkdir()
    with ExitStack() as stack:
        tokens, targets = (
            _Stream(stack.enter_context(corpus_path(place / "corpus", "bin").open("wb"))) for place in places.values()
        )
        lengths = array("i")
        vocab_size = 0
        for number, document in enumerate(documents):
            if not len(document) or int(document.tokens.min()) < 0:
                raise DataError(f"document {number}: must have tokens, none of them negative")
            vocab_size = max(vocab_size, int(document.tokens.max()) + 1)
            lengths.append(len(document))
            tokens.write(document.tokens.astype(TOKEN_DTYPE))
            targets.write(document.targets.astype(TARGET_DTYPE))
    if not lengths:
        raise DataError(f"{prefix}: no documents; a corpus has at least one")
    if kind == PAIRS and len(lengths) % 2:
        raise DataError(f"{prefix}: {len(lengths)} documents of pairs; chosen and rejected make an even number")
    rejected = dict(sorted((origin.rejected or {}).items()))
    num_records = len(lengths) // 2 if kind == PAIRS else len(lengths)
    whole = Sidecar(
        dtype=TOKEN_DTYPE.name,
        num_tokens=sum(lengths),
        num_documents=len(lengths),
        end_of_document=end_of_document,
        tokenizer=tokenizer,
        shuffle_seed=origin.shuffle_seed,
        records_in=num_records + sum(rejected.values()),
        rejected=rejected,
        **_seal(places["tokens"], lengths, tokens.checksums, TOKEN_DTYPE),
        inputs=origin.inputs,
        tool_version=version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    flags = replace(
        whole,
        dtype=TARGET_DTYPE.name,
        end_of_document=1,
        tokenizer=None,
        records_in=len(lengths),
        rejected={},
        inputs=(),
        **_seal(places["targets"], lengths, targets.checksums, TARGET_DTYPE),
    )
    content = ChatContent(
        kind=kind,
        labels=labels,
        end_of_turn=end_of_turn,
        vocab_size=vocab_size,
        truncated=origin.truncated,
        targets=flags.fingerprint,
    )
    sidecar = replace(whole, chat=content)
    # Without its sidecar the old corpus is none: it goes before the targets that it names.
    corpus_path(prefix, "json").unlink(missing_ok=True)
    publish(places["targets"], targets_prefix(prefix), flags)
    publish(places["tokens"], prefix, sidecar)
    return sidecar


class _Stream:
    """A file being written, with its checksums."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.checksums = StreamChecksums()

    def write(self, values: np.ndarray) -> None:
        content = values.tobytes()
        self._stream.write(content)
        self.checksums.update(content)


def _seal(place: Path, lengths: "array[int]", checksums: StreamChecksums, dtype: np.dtype) -> dict[str, FileDigest]:
    """Writes index and checksums beside a token file; the digests of the three."""
    corpus = place / "corpus"
    sync_file(corpus_path(corpus, "bin"))
    write_atomically(corpus_path(corpus, "crc"), checksums.crc_bytes())
    index = corpus_path(corpus, "idx")
    _native.write_index(os.fsencode(index), np.frombuffer(lengths, np.int32), DTYPE_CODES[dtype.name], dtype.itemsize)
    digests = {"bin": FileDigest(size_bytes=checksums.size_bytes, sha256=checksums.sha256())}
    for suffix in ("idx", "crc"):
        path = corpus_path(corpus, suffix)
        digests[suffix] = FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
    return digests
