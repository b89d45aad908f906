"""Writing a corpus of dialogues: both of its corpora beside their names first, then put there, the sidecar last."""

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

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
    digest_of,
)
from data_tools.corpus.writer import TOKEN_DTYPE, prepare_place, publish, require_absent, scratch_folder
from data_tools.errors import DataError
from data_tools.io.atomic_file import sync_file, write_atomically
from data_tools.io.checksums import StreamChecksums, sha256_of_file
from data_tools.io.progress import Progress, SilentProgress
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
    rejected: Mapping[str, int] = field(default_factory=dict)
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
        origin: counts and files; of an unknown one if None.
        overwrite: replace a corpus that is there.
    Returns:
        the sidecar of PREFIX.
    Raises:
        DataError: no documents, an odd number of them for pairs, an empty or negative one, or the corpus exists.
        OSError: the disk is full or fails. Nothing is left behind.
    """
    prepare_place(prefix)
    with corpus_lock(prefix):
        for one in (prefix, targets_prefix(prefix)):
            require_absent(one, overwrite=overwrite)
        content = ChatContent(kind=kind, labels=labels, end_of_turn=end_of_turn, vocab_size=0, truncated=0, targets="")
        return write_locked(prefix, documents, content, tokenizer, end_of_document, origin or Origin())


def write_locked(
    prefix: str | Path,
    documents: Iterable[Rendered],
    content: ChatContent,
    tokenizer: str | None,
    end_of_document: int,
    origin: Origin,
    progress: Progress | None = None,
) -> Sidecar:
    """What `write_chat_corpus` does once nothing stands in the way; replaces what is there.

    Args:
        prefix: the caller holds its lock.
        content: its kind, labels and end of turn; the rest is filled in.
        progress: told the tokens written.
    """
    if content.kind not in CHAT_KINDS:
        raise DataError(f"kind={content.kind!r:.100}: must be one of {', '.join(CHAT_KINDS)}")
    with scratch_folder(prefix) as folder, naming(corpus_path(prefix, "bin")):
        written = _Written(folder)
        with written.streams():
            for number, document in enumerate(documents):
                if not len(document) or int(document.tokens.min()) < 0:
                    raise DataError(f"document {number}: must have tokens, none of them negative")
                written.add(document)
                (progress or SilentProgress()).advance(len(document))
        num_documents = len(written.lengths)
        if not num_documents:
            raise DataError(f"{prefix}: no documents; a corpus has at least one")
        if content.kind == PAIRS and num_documents % 2:
            raise DataError(f"{prefix}: {num_documents} documents of pairs; chosen and rejected make an even number")
        bin_, idx, crc = written.seal("targets", TARGET_DTYPE)
        flags = Sidecar(
            dtype=TARGET_DTYPE.name,
            num_tokens=sum(written.lengths),
            num_documents=num_documents,
            end_of_document=1,
            tokenizer=None,
            shuffle_seed=origin.shuffle_seed,
            records_in=num_documents,
            rejected={},
            bin=bin_,
            idx=idx,
            crc=crc,
            inputs=(),
            tool_version=version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        content = replace(content, vocab_size=written.vocab_size, truncated=origin.truncated, targets=flags.fingerprint)
        bin_, idx, crc = written.seal("tokens", TOKEN_DTYPE)
        num_good = num_documents // 2 if content.kind == PAIRS else num_documents
        sidecar = replace(
            flags,
            dtype=TOKEN_DTYPE.name,
            end_of_document=end_of_document,
            tokenizer=tokenizer,
            records_in=num_good + sum(origin.rejected.values()),
            rejected=dict(sorted(origin.rejected.items())),
            bin=bin_,
            idx=idx,
            crc=crc,
            inputs=origin.inputs,
            chat=content,
        )
        # Without its sidecar the old corpus is none: that goes before the targets that it names.
        corpus_path(prefix, "json").unlink(missing_ok=True)
        publish(folder / "targets", targets_prefix(prefix), flags)
        publish(folder / "tokens", prefix, sidecar)
    return sidecar


class _Written:
    """Both token files as they grow.

    Attributes:
        lengths: tokens of each document.
        vocab_size: every token is below it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._streams: dict[str, BinaryIO] = {}
        self._checksums = {name: StreamChecksums() for name in ("tokens", "targets")}
        self.lengths = array("i")
        self.vocab_size = 0

    @contextmanager
    def streams(self) -> Iterator[None]:
        """Opens the files for the block."""
        with ExitStack() as stack:
            for name in self._checksums:
                (self._folder / name).mkdir()
                path = corpus_path(self._folder / name / "corpus", "bin")
                self._streams[name] = stack.enter_context(path.open("wb"))
            yield

    def add(self, document: Rendered) -> None:
        """Appends a document to both."""
        self.vocab_size = max(self.vocab_size, int(document.tokens.max()) + 1)
        self.lengths.append(len(document))
        self._append("tokens", document.tokens.astype(TOKEN_DTYPE))
        self._append("targets", document.targets.astype(TARGET_DTYPE))

    def _append(self, name: str, values: npt.NDArray[np.generic]) -> None:
        content = values.tobytes()
        self._streams[name].write(content)
        self._checksums[name].update(content)

    def seal(self, name: str, dtype: np.dtype) -> tuple[FileDigest, FileDigest, FileDigest]:
        """Writes index and checksums of one of them; the digests of .bin, .idx and .crc."""
        corpus, checksums = self._folder / name / "corpus", self._checksums[name]
        sync_file(corpus_path(corpus, "bin"))
        write_atomically(corpus_path(corpus, "crc"), checksums.crc_bytes())
        index = corpus_path(corpus, "idx")
        lengths = np.frombuffer(self.lengths, dtype=np.int32)
        _native.write_index(os.fsencode(index), lengths, DTYPE_CODES[dtype.name], dtype.itemsize)
        idx, crc = (
            FileDigest(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
            for path in (index, corpus_path(corpus, "crc"))
        )
        return digest_of(checksums), idx, crc
