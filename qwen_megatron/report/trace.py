"""Which documents a step was trained on: numbers of its samples from metrics.jsonl, the rest from the start's settings.

What a sample number means follows from settings and corpora alone, but both may change between two starts, where a user
has allowed it. So a step is looked up under the start that trained it, never under the settings that are there now.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.corpus.index import CorpusIndex
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.training import TrainingConfig
from qwen_megatron.config.serialize import from_dict
from qwen_megatron.data.blended import SampleId
from qwen_megatron.data.pretraining.dataset import BlendedDataset, open_dataset
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.report.run_files import Row, RunFiles, read_run, section

log = logging.getLogger(__name__)


def traced_samples(directory: Path, step: int) -> Iterator[dict[str, Any]]:
    """The samples of a step and where their tokens stand, as `describe` gives them.

    Args:
        directory: The run's folder.
        step: Number of the step, the first is 1.
    Raises:
        ConfigError: if the folder holds no run, or does not tell what the step was trained on.
        DataError: if a corpus is gone, or is not the one that was trained on.
    """
    run = read_run(directory)
    numbers = sample_numbers(run, step)
    dataset = trained_on(start_of(run, step), directory)
    indexes = [CorpusIndex.open(prefix) for prefix in dataset.prefixes]
    for number in numbers:
        sample = dataset.train_id(number)
        yield describe(number, sample, dataset.prefixes[sample.corpus], indexes[sample.corpus], dataset.seq_length)


def sample_numbers(run: RunFiles, step: int) -> range:
    """Numbers of the samples of a step in the run.

    Raises:
        ConfigError: if metrics.jsonl does not tell.
    """
    path = run.directory / "metrics.jsonl"
    row = next((row for row in reversed(run.steps) if row["step"] == step), None)
    if row is None:
        known = [row["step"] for row in run.steps]
        span = f"steps {min(known):g} to {max(known):g}" if known else "no step"
        raise ConfigError(
            f"--step {step}: {path} has a row of {span}, but none of this one, so its samples are not known; name a "
            "step that was trained"
        )
    consumed, batch_size = row.get("consumed_samples"), row.get("batch_size")
    if type(consumed) is not int or type(batch_size) is not int or not 0 <= batch_size <= consumed:
        raise ConfigError(f"--step {step}: its row of {path} does not tell its samples; it is damaged")
    return range(consumed - batch_size, consumed)


def start_of(run: RunFiles, step: int) -> Row:
    """The start that trained a step: the latest one from before it, as each trains again what comes after it.

    Raises:
        ConfigError: if starts.jsonl does not tell.
    """
    earlier = [row for row in run.starts if type(row.get("step")) is int and row["step"] < step]
    if not earlier:
        raise ConfigError(
            f"--step {step}: {run.directory / 'starts.jsonl'} has no start before this step, so the settings it was "
            "trained with are not known"
        )
    return earlier[-1]


def trained_on(start: Row, directory: Path) -> BlendedDataset:
    """The data of a start, with the corpora that were there then.

    Args:
        start: Its row in starts.jsonl.
        directory: The run's folder, for messages.
    Raises:
        ConfigError: if its settings are not known.
        DataError: if a corpus is gone, or its content is not what was trained on.
    """
    settings = section(start, "config")
    where = f"{directory / 'starts.jsonl'}, the start at step {start['step']}"
    try:
        data = from_dict(DataConfig, settings.get("data"), "data")
        training = from_dict(TrainingConfig, settings.get("training"), "training")
        model = from_dict(ModelConfig, settings.get("model"), "model")
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error
    data = placed(data, start, where)
    dataset = open_dataset(
        data.blend,
        seq_length=training.seq_length,
        seed=training.seed,
        eval_samples=data.eval_samples,
        vocab_size=model.vocab_size,
    )
    check_same_content(dataset, start, where)
    return dataset


def placed(data: DataConfig, start: Row, where: str) -> DataConfig:
    """The section with the paths of its corpora as the start meant them: relative ones are not the caller's."""
    folder = start.get("working_directory")
    if not isinstance(folder, str):
        if any(not os.path.isabs(prefix) for prefix in data.blend):
            log.warning("%s: does not tell its working folder; paths of corpora are taken from this one", where)
        return data
    paths = {prefix: os.path.join(folder, prefix) for prefix in data.blend}
    if isinstance(data.blend, Mapping):
        return dataclasses.replace(data, blend={paths[prefix]: weight for prefix, weight in data.blend.items()})
    return dataclasses.replace(data, blend=tuple(paths.values()))


def check_same_content(dataset: BlendedDataset, start: Row, where: str) -> None:
    """Compares the corpora with those that the start recorded.

    Raises:
        DataError: naming one that has another content.
    """
    recorded = list(section(start, "data").values())
    then = [entry.get("fingerprint") if isinstance(entry, dict) else None for entry in recorded]
    now = {prefix: source["fingerprint"] for prefix, source in dataset.sources(0).items()}
    if len(then) != len(now) or None in then:
        log.warning("%s: does not tell the content of its corpora; that it is still the same is not known", where)
        return
    for (prefix, found), expected in zip(now.items(), then, strict=True):
        if found != expected:
            raise DataError(
                f"{prefix}: has the content {found}, the step was trained on {expected}; put the corpus back that was "
                f"trained on ({where})"
            )


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
