"""Every byte of a corpus of dialogues against its sidecars, and tokens and targets against each other."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_tools.chat.chat_corpus import ChatCorpus, targets_prefix
from data_tools.corpus.index import CorpusIndex
from data_tools.corpus.sidecar import PROMPTS, Sidecar, corpus_path
from data_tools.corpus.verify import verify
from data_tools.errors import DataError


def verify_chat(prefix: str | Path, *, workers: int | None = None) -> Sidecar:
    """Verifies PREFIX and PREFIX.targets as `verify` does, then what they say of each other.

    Args:
        prefix: path of the corpus without suffix.
        workers: threads; None: one for each core that there is.
    Returns:
        the sidecar of PREFIX, all of whose statements hold.
    Raises:
        DataError: a file is damaged, which is named; the two are not of the same documents; a target is neither 0 nor
            1; a token is not below the sidecar's bound; a dialogue has nothing to learn, or a prompt something.
    """
    sidecar = verify(prefix, workers=workers)
    flags = verify(targets_prefix(prefix), workers=workers)
    corpus = ChatCorpus.open(prefix)
    ends = CorpusIndex.open(prefix).document_ends()
    if not np.array_equal(ends, CorpusIndex.open(targets_prefix(prefix)).document_ends()):
        raise DataError(
            f"{corpus_path(targets_prefix(prefix), 'idx')}: its documents end elsewhere than those of "
            f"{corpus_path(prefix, 'idx')}; make the corpus again"
        )
    tokens = np.memmap(corpus_path(prefix, "bin"), dtype=np.dtype(sidecar.dtype).newbyteorder("<"), mode="r")
    targets = np.memmap(corpus_path(targets_prefix(prefix), "bin"), dtype=flags.dtype, mode="r")
    _check_tokens(prefix, tokens, corpus.vocab_size)
    _check_targets(prefix, targets, ends, learns=corpus.kind != PROMPTS)
    return sidecar


def _check_tokens(prefix: str | Path, tokens: npt.NDArray[np.integer], vocab_size: int) -> None:
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise DataError(f"{prefix}.bin: token {largest} is not below vocab_size={vocab_size}; make the corpus again")


def _check_targets(
    prefix: str | Path, targets: npt.NDArray[np.integer], ends: npt.NDArray[np.int64], *, learns: bool
) -> None:
    name = corpus_path(targets_prefix(prefix), "bin")
    if int(targets.max()) > 1:
        raise DataError(f"{name}: entry {int(np.argmax(targets > 1))} is neither 0 nor 1; make the corpus again")
    starts = np.append(0, ends[:-1])
    # What stands first in a document is nobody's label.
    learned = np.add.reduceat(targets, starts, dtype=np.int64) - targets[starts]
    wrong = np.flatnonzero((learned > 0) != learns)
    if len(wrong):
        rule = "has nothing to learn" if learns else "is a prompt but has something to learn"
        raise DataError(f"{name}: document {int(wrong[0])} {rule}; make the corpus again")
