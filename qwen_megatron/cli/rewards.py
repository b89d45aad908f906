"""`qwen-megatron rewards`: what a reward model thinks of dialogues, and how often it is right about pairs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.chat.chat_corpus import ChatCorpus
from data_tools.corpus.sidecar import PAIRS, PROMPTS
from qwen_megatron.cli.inference_options import positive
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.launcher import settle_inference
from qwen_megatron.libraries import first_imports, silence_libraries

EPILOG = """examples:
  qwen-megatron rewards runs/reward-7b data/dialogues --documents 10
  qwen-megatron rewards runs/reward-7b data/pairs --json > rewards.jsonl
  qwen-data inspect data/dialogues --document 3

Documents are numbered as `qwen-data inspect` numbers them; of pairs 2k is the chosen one and 2k + 1 the rejected one.
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "rewards",
        help="print a reward model's rewards of dialogues or pairs",
        description="Prints the reward of each dialogue of a corpus that qwen-data chat made; of pairs also the "
        "accuracy with its 95 % interval. Works in one process on a checkpoint of any layout.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a reward model's checkpoint, or its run's folder")
    parser.add_argument("corpus", metavar="PREFIX", help="of a corpus of dialogues or pairs")
    parser.add_argument("--documents", type=positive, metavar="N", help="of the corpus, its first ones (all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a document, and no accuracy")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError: if the source is not whole, or no reward model.
        ConfigError: if the corpus is one of prompts, which have no answers.
        DataError: if the corpus is missing, damaged, or of another vocabulary.
    """
    corpus = ChatCorpus.open(args.corpus)
    if corpus.kind == PROMPTS:
        raise ConfigError(f"{args.corpus}: is a corpus of prompts, which have no answers; use dialogues or pairs")
    count = min(args.documents or corpus.num_documents, corpus.num_documents)
    settle_inference()
    silence_libraries()
    with first_imports():
        from qwen_megatron.alignment.scoring import rewards_of
        from qwen_megatron.inference.loading import load_for_inference, single_process
        from qwen_megatron.model.head_kinds import SCALAR

    rewards: list[float] = []
    with single_process() as groups:
        model = load_for_inference(args.source, groups, head=SCALAR)
        for document, reward in enumerate(rewards_of(model, corpus, range(count))):
            rewards.append(reward)
            print(json.dumps({"document": document, "reward": reward}) if args.json else f"{document}  {reward:.4f}")
    if corpus.kind == PAIRS and not args.json and count > 1:
        print(accuracy_line(rewards))
    return 0


def accuracy_line(rewards: list[float]) -> str:
    """How often the chosen dialogue of a pair has the higher reward; equal ones count half."""
    from qwen_megatron.alignment.intervals import wilson_interval

    pairs = list(zip(rewards[0::2], rewards[1::2], strict=False))
    right = sum(1.0 if chosen > rejected else 0.5 * (chosen == rejected) for chosen, rejected in pairs)
    low, high = wilson_interval(right, len(pairs))
    return f"accuracy {right / len(pairs):.1%} of {len(pairs)} pairs, {low:.1%} to {high:.1%} with 95 %"
