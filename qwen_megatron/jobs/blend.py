"""The corpora of a run, opened without torch."""

from __future__ import annotations

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.pretraining.dataset import BlendedDataset, open_dataset


def open_blend(config: ResolvedConfig) -> BlendedDataset:
    """The corpora of `data.blend`.

    Raises:
        DataError: if one is missing, damaged or too small.
    """
    return open_dataset(
        config.data.blend,
        seq_length=config.training.seq_length,
        seed=config.training.seed,
        eval_samples=config.data.eval_samples,
        vocab_size=config.model.vocab_size,
        mask_documents=config.data.mask_documents,
    )
