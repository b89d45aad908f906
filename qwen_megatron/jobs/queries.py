"""What PPO reads: queries, and pretraining text beside them; opened without torch."""

from __future__ import annotations

from typing import Any

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.pretraining.dataset import BlendedDataset, open_dataset
from qwen_megatron.data.prompts.dataset import Queries, open_prompts
from qwen_megatron.errors import DataError


def open_queries(config: ResolvedConfig) -> Queries:
    """The corpora of `data.blend`.

    Raises:
        DataError: if one is missing, damaged, too small or not of prompts.
    """
    return open_prompts(
        config.data.blend,
        longest=config.training.seq_length - config.ppo.response_length,
        seed=config.training.seed,
        eval_samples=config.data.eval_samples,
        vocab_size=config.model.vocab_size,
    )


def open_pretraining(config: ResolvedConfig) -> BlendedDataset | None:
    """The corpora of `ppo.pretraining_blend`; None if there are none.

    Raises:
        DataError: if one is missing, damaged, too small or not of text.
    """
    if not config.ppo.pretraining_blend:
        return None
    texts = open_dataset(
        config.ppo.pretraining_blend,
        seq_length=config.training.seq_length,
        seed=config.training.seed,
        eval_samples=0,
        vocab_size=config.model.vocab_size,
    )
    for prefix, corpus in zip(texts.prefixes, texts.opened, strict=True):
        if corpus.sidecar.chat is not None:
            raise DataError(
                f"{prefix}: is a corpus of {corpus.sidecar.chat.kind}, not of text; ppo.pretraining_blend takes those "
                "of qwen-data tokenize"
            )
    return texts


def pretraining_samples(config: ResolvedConfig, consumed_queries: int) -> int:
    """Sequences of pretraining text that were used beside so many queries: none in the warm-up of the value model."""
    options, training = config.ppo, config.training
    if not options.pretraining_coefficient:
        return 0
    steps = max(0, consumed_queries // training.global_batch_size - options.value_warmup_iters)
    sequences = options.num_epochs * training.global_batch_size * options.responses_per_query
    return steps * sequences * options.pretraining_ratio


def ppo_sources(
    config: ResolvedConfig, queries: Queries, texts: BlendedDataset | None, consumed_queries: int
) -> dict[str, dict[str, Any]]:
    """What queries and text come from; see `data.protocol.Dataset.sources`."""
    found = queries.sources(consumed_queries)
    return found if texts is None else found | texts.sources(pretraining_samples(config, consumed_queries))
