"""`qwen-megatron trace`: which documents a step was trained on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.corpus_index import CorpusIndex
from data_tools.plain_text import printable
from qwen_megatron.data.pretraining.dataset import SampleId, open_dataset
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.preflight import prepare_config

EPILOG = """examples:
  qwen-megatron trace demo/run --step 40
  qwen-megatron trace demo/run --step 40 --json | jq .documents

Nothing is looked up in a log: the samples of a step follow from the configuration alone.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "trace",
        help="name the documents of a training step",
        description="Names the samples of a step, where their tokens stand, and the documents these belong to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="the run's folder (checkpoint.directory)")
    parser.add_argument("--step", type=int, required=True, help="number of the step, the first is 1")
    parser.add_argument("--json", action="store_true", help="one JSON object a sample instead of lines for people")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the samples of the step.

    Raises:
        ConfigError: if the folder holds no run, or the step is none of it.
        DataError: if a corpus is gone or has changed its structure.
    """
    configuration = args.run_directory / "config.yaml"
    if not configuration.is_file():
        raise ConfigError(
            f"{args.run_directory}: holds no config.yaml; name the folder of a run (checkpoint.directory)"
        )
    config = prepare_config(str(configuration), (), None, with_files=False)
    if not 1 <= args.step <= config.num_steps:
        ramp = f" = {config.num_steps} steps with the ramp" if config.num_steps != config.training.train_iters else ""
        raise ConfigError(
            f"--step {args.step}: must be between 1 and training.train_iters({config.training.train_iters}){ramp}"
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
    for number in range(sizes.samples_after(args.step - 1), sizes.samples_after(args.step)):
        sample = dataset.train_id(number)
        place = describe(number, sample, dataset.prefixes[sample.corpus], indexes[sample.corpus], dataset.seq_length)
        print(json.dumps(place) if args.json else printable(as_line(place)))
    return 0


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


def as_line(place: dict[str, Any]) -> str:
    """One sample for people."""
    documents = place["documents"]
    named = str(documents[0]) if len(documents) == 1 else f"{documents[0]} to {documents[-1]}"
    start, stop = place["tokens"]
    return (
        f"sample {place['sample']}: {place['corpus']} tokens {start} to {stop - 1}, epoch {place['epoch']}, "
        f"{'document' if len(documents) == 1 else 'documents'} {named}"
    )
