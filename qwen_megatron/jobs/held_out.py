"""The corpora that a run is evaluated on besides, and what it takes of those it trains on; opened without torch."""

from __future__ import annotations

from pathlib import Path

from data_tools.corpus.reader import Corpus
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.blended import BlendedSamples
from qwen_megatron.data.pretraining.dataset import HeldOutDataset
from qwen_megatron.data.pretraining.plan import corpus_plans, plan_lines, plan_warnings


def open_held_out(config: ResolvedConfig) -> dict[str, HeldOutDataset]:
    """The corpora of `data.eval_blend`, by name.

    Raises:
        DataError: if one is missing, damaged or too small.
    """
    named = config.data.eval_blend
    return {
        name: HeldOutDataset(
            {prefix: Corpus.open(Path(prefix)) for prefix in prefixes},
            seq_length=config.training.seq_length,
            eval_samples=config.data.eval_blend_samples,
            vocab_size=config.model.vocab_size,
            mask_documents=config.data.mask_documents,
        )
        # Resolved it is a mapping, or empty.
        for name, prefixes in (named.items() if isinstance(named, dict) else ())
    }


def data_plan(config: ResolvedConfig, dataset: BlendedSamples) -> tuple[list[str], list[str]]:
    """Lines about what the whole run takes of each corpus, and warnings about it."""
    plans = corpus_plans(dataset, config.training.samples_in_all)
    return [*plan_lines(plans), *dataset.notes], plan_warnings(plans)
