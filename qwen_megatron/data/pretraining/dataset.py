"""Samples of a blend of corpora, each found from its number alone.

Sample k of a corpus is tokens [k * seq_length, (k + 1) * seq_length], one more than a sequence for the last label. The
last samples of every corpus are held out for evaluation and never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_tools.corpus.reader import Corpus
from data_tools.io.open_files import allow_open_files
from qwen_megatron.data.blended import BlendedSamples, SampleId, divided, evenly_spread
from qwen_megatron.errors import DataError

if TYPE_CHECKING:
    from qwen_megatron.data.batch import Batch


class BlendedDataset(BlendedSamples):
    """Training and evaluation samples of a blend.

    Args:
        corpora: Open corpora by prefix.
        weights: Weight of each corpus; None for shares by token count.
        seq_length: Tokens a sample, without the last label.
        seed: Order of the samples.
        eval_samples: Samples held out over the whole blend, by weight, at least one a corpus if any.
        vocab_size: Rows of the model's vocabulary; token ids must be below it. None: any id will do.
        mask_documents: Documents packed into a sequence do not see each other.
    Raises:
        DataError: if a corpus is too small to train and hold out, or the corpora end documents in different ways.
    """

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        weights: Sequence[float] | None,
        *,
        seq_length: int,
        seed: int,
        eval_samples: int,
        vocab_size: int | None = None,
        mask_documents: bool = False,
    ):
        self.corpora = list(corpora.values())
        self.vocab_size = vocab_size
        self.mask_documents = mask_documents
        self.end_of_document = common_end(corpora)
        # An empty corpus has no share; it is refused below, by name.
        weights = [max(1, corpus.num_tokens) for corpus in self.corpora] if weights is None else list(weights)
        train_counts, eval_ids = divided(
            {prefix: max(0, corpus.num_tokens - 1) // seq_length for prefix, corpus in corpora.items()},
            weights,
            eval_samples,
            samples=f"samples of seq_length {seq_length}",
            remedy="lower training.seq_length, or add text",
        )
        super().__init__(
            corpora, weights, train_counts=train_counts, eval_ids=eval_ids, seq_length=seq_length, seed=seed
        )

    def tokens(self, sample: SampleId) -> np.ndarray:
        """int64 [seq_length + 1].

        Raises:
            DataError: if the file is damaged or a token is not in the model's vocabulary.
        """
        self.begin_epoch(sample)
        first = sample.sample * self.seq_length
        tokens = self.corpora[sample.corpus].tokens(first, self.seq_length + 1)
        # Tensor parallelism would train through such an id: every rank takes it for a row of another one.
        if self.vocab_size is not None and tokens.max() >= self.vocab_size:
            place = int(np.argmax(tokens >= self.vocab_size))
            raise DataError(
                f"{self.prefixes[sample.corpus]}: token {first + place} has id {tokens[place]}, but "
                f"model.vocab_size={self.vocab_size}; train a model with the corpus's vocabulary, or tokenize the text "
                "with the model's"
            )
        return tokens

    def batch(self, ids: Sequence[SampleId | None]) -> Batch:
        """Rows of seq_length + 1 tokens, cut into inputs and labels; see `Dataset.batch`."""
        # Not above: what only names samples, such as `trace`, starts without torch.
        from qwen_megatron.data.batch import make_batch

        rows = [None if sample is None else self.tokens(sample) for sample in ids]
        return make_batch(rows, ids, self.seq_length, self.end_of_document, mask_documents=self.mask_documents)

    def batch_without_tokens(self, ids: Sequence[SampleId | None]) -> Batch | None:
        """See `Dataset.batch_without_tokens`: a stage in the middle needs to know documents, if anything."""
        from qwen_megatron.data.batch import blank_batch

        return None if self.mask_documents else blank_batch(ids, self.seq_length)


class HeldOutDataset(BlendedDataset):
    """Samples of corpora that are evaluated on and never trained on, evenly spread over all of them.

    Args:
        corpora: Open corpora by prefix.
        seq_length: Tokens a sample, without the last label.
        eval_samples: Most samples; 0 for all.
        vocab_size: As for `BlendedDataset`.
        mask_documents: As for `BlendedDataset`.
    Raises:
        DataError: if a corpus holds no sample, or the corpora end documents in different ways.
    """

    def __init__(
        self,
        corpora: Mapping[str, Corpus],
        *,
        seq_length: int,
        eval_samples: int,
        vocab_size: int | None = None,
        mask_documents: bool = False,
    ):
        super().__init__(
            corpora,
            None,
            seq_length=seq_length,
            seed=0,
            eval_samples=0,
            vocab_size=vocab_size,
            mask_documents=mask_documents,
        )
        spread = evenly_spread(self.train_counts, eval_samples)
        self.eval_ids = [SampleId(corpus=corpus, sample=sample, epoch=0) for corpus, sample in spread]


def common_end(corpora: Mapping[str, Corpus]) -> int:
    """The id that ends documents in all corpora.

    Raises:
        DataError: if they differ: then so do their tokenizers.
    """
    ends = {prefix: corpus.end_of_document for prefix, corpus in corpora.items()}
    if len(set(ends.values())) > 1:
        listed = ", ".join(f"{prefix}: {end}" for prefix, end in ends.items())
        raise DataError(f"data.blend: documents end with different ids ({listed}); tokenize the corpora alike")
    return next(iter(ends.values()))


def reserve_files(num_corpora: int) -> None:
    """Lets this process have the files of so many corpora open.

    Raises:
        DataError: if the limit of open files cannot be raised that far.
    """
    # .bin and .crc stay open while training reads, .idx too where documents are looked up.
    allow_open_files(3 * num_corpora, f"data.blend: its {num_corpora} corpora")


def open_dataset(
    blend: Mapping[str, float] | Sequence[str],
    *,
    seq_length: int,
    seed: int,
    eval_samples: int,
    vocab_size: int,
    mask_documents: bool = False,
) -> BlendedDataset:
    """Opens the corpora of `data.blend`: prefixes with weights, or prefixes alone for shares by token count.

    Raises:
        DataError: if a corpus is missing, damaged or too small, the corpora were tokenized in different ways, or there
            are more of them than this process may have files open.
    """
    reserve_files(len(blend))
    corpora = {str(prefix): Corpus.open(Path(prefix)) for prefix in blend}
    weights = list(blend.values()) if isinstance(blend, Mapping) else None
    return BlendedDataset(
        corpora,
        weights,
        seq_length=seq_length,
        seed=seed,
        eval_samples=eval_samples,
        vocab_size=vocab_size,
        mask_documents=mask_documents,
    )
