"""Which documents a step was trained on: nothing is looked up in a log, it follows from the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.corpus.index import CorpusIndex
from qwen_megatron.data.pretraining.dataset import SampleId, open_dataset
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.preflight import prepare_config


def traced_samples(directory: Path, step: int) -> Iterator[dict[str, Any]]:
    """The samples of a step and where their tokens stand, as `describe` gives them.

    Args:
        directory: The run's folder.
        step: Number of the step, the first is 1.
    Raises:
        ConfigError: if the folder holds no run, or the step is none of it.
        DataError: if a corpus is gone or has changed its structure.
    """
    configuration = directory / "config.yaml"
    if not configuration.is_file():
        raise ConfigError(f"{directory}: holds no config.yaml; name the folder of a run (checkpoint.directory)")
    config = prepare_config(str(configuration), (), None, with_files=False)
    if not 1 <= step <= config.num_steps:
        ramp = f" = {config.num_steps} steps with the ramp" if config.num_steps != config.training.train_iters else ""
        raise ConfigError(
            f"--step {step}: must be between 1 and training.train_iters({config.training.train_iters}){ramp}"
        )
    dataset = open_dataset(
        config.data.blend,
        seq_length=config.training.seq_length,
        seed=config.training.seed,
        eval_samples=config.data.eval_samples,
        vocab_size=config.model.vocab_size,
    )
    indexes = [CorpusIndex.open(prefix) for prefix in dataset.prefixes]
    sizes = config.training.batch_sizes
    for number in range(sizes.samples_after(step - 1), sizes.samples_after(step)):
        sample = dataset.train_id(number)
        yield describe(number, sample, dataset.prefixes[sample.corpus], indexes[sample.corpus], dataset.seq_length)


def describe(number: int, sample: SampleId, prefix: str, index: CorpusIndex, seq_length: int) -> dict[str, Any]:
    """A sample's number in the run, corpus, epoch, token range and documents (the last token is a label only)."""
    start = sample.sample * seq_length
    stop = start + seq_length + 1
    ends = index.document_ends()
    first, last = (int(ends.searchsorted(token, side="right")) for token in (start, stop - 1))
    return {
        "sample": number,
        "corpus": prefix,
        "epoch": sample.epoch,
        "tokens": [start, stop],
        "documents": list(range(first, last + 1)),
    }
