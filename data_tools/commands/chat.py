"""``qwen-data chat``."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.commands.arguments import add_workers_argument, byte_size, positive_int, seed
from data_tools.commands.rejections import check_rejected, rejection_limit

if TYPE_CHECKING:
    from data_tools.corpus.sidecar import Sidecar

# Those of data_tools.corpus.sidecar, chat.formats and chat.rendering, which --help need not import.
_KINDS = ("dialogues", "pairs", "prompts")
_FORMATS = ("messages", "sharegpt", "alpaca", "prompt")
_LABELS = ("assistant", "qwen_official")
_EXAMPLES = """examples:
  qwen-data chat alpaca.json tools.jsonl.gz --output corpora/chat
  qwen-data chat preferences.jsonl --kind pairs --output corpora/pairs
  qwen-data chat questions.jsonl --kind prompts --output corpora/prompts --max-tokens 512

Records, told by their keys: messages (role, content, tool_calls), conversations (from, value), instruction (input,
output; or instances), prompt (completion or response); for pairs chosen and rejected: answers to one of these, whole
dialogues, or transcripts of Human and Assistant. Tools are rendered in ReAct form; calls are learned, results are not.

Records that give no sample are counted and listed with file and line (of an array the number of the record) in
PREFIX.rejected.jsonl. Dialogues longer than --max-tokens are cut where a turn ends; over_max_tokens are those of which
no answer would be left, and longer pairs and prompts; no_targets are those without an answer.

Finished parts are kept beside the corpus in .NAME.chat-work until it is complete: a run that was killed or interrupted
goes on from there when it is started again.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "chat",
        help="dialogues, preference pairs or prompts to a shuffled corpus with loss masks",
        description="Renders dialogues in ChatML with Qwen's tokenizer and writes a corpus of tokens and, beside it as "
        "PREFIX.targets, which of them are learned. Files are JSON Lines or JSON arrays, plain or compressed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="JSON Lines or a JSON array")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="path of the corpus without suffix")
    parser.add_argument("--kind", choices=_KINDS, default="dialogues", help="what records are (dialogues)")
    parser.add_argument("--format", choices=_FORMATS, help="of all records (each told by its keys)")
    parser.add_argument(
        "--labels",
        choices=_LABELS,
        default="assistant",
        help="what is learned: the assistant's words and the end of its turn, or what the released finetune.py learns: "
        "of every turn also its first token, its end and the line end (assistant)",
    )
    system = parser.add_mutually_exclusive_group()
    system.add_argument(
        "--system",
        metavar="TEXT",
        help='system turn of dialogues that have none ("You are a helpful assistant.")',
    )
    system.add_argument("--no-system", action="store_true", help="give no system turn to dialogues that have none")
    parser.add_argument(
        "--max-tokens", type=positive_int, default=2048, metavar="N", help="tokens of a document (2048, the paper's)"
    )
    parser.add_argument("--seed", type=seed, default=1234, help="seed of the document order (1234)")
    parser.add_argument("--no-shuffle", action="store_true", help="keep the order of the input")
    add_workers_argument(parser)
    parser.add_argument(
        "--max-document-bytes",
        type=byte_size,
        default="64M",
        metavar="SIZE",
        help="reject longer lines (64M)",
    )
    parser.add_argument(
        "--max-bad",
        type=rejection_limit,
        metavar="LIMIT",
        help="exit with status 1 if more records are rejected: a number (100) or a share of all (0.1%% or 0.001); the "
        "corpus is written all the same (no limit)",
    )
    parser.add_argument(
        "--rejected", type=Path, metavar="FILE", help="list of rejected records (PREFIX.rejected.jsonl)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus that is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes the corpus and prints what is in it; fails if a stream breaks or --max-bad is exceeded."""
    from data_tools.chat.chatml import DEFAULT_SYSTEM
    from data_tools.corpus.rejections import rejected_path
    from data_tools.stages.chat_files import ChatOptions, make_chat_corpus

    started = time.monotonic()
    sidecar = make_chat_corpus(
        options.inputs,
        options.output,
        ChatOptions(
            kind=options.kind,
            record_format=options.format,
            labels=options.labels,
            system=None if options.no_system else DEFAULT_SYSTEM if options.system is None else options.system,
            max_tokens=options.max_tokens,
            seed=options.seed,
            shuffle=not options.no_shuffle,
            workers=options.workers,
            max_document_bytes=options.max_document_bytes,
            overwrite=options.overwrite,
            rejected=options.rejected,
        ),
    )
    print(_summary(options.output, options.kind, sidecar, time.monotonic() - started))
    listed = options.rejected or rejected_path(options.output)
    num_rejected = sum(sidecar.rejected.values())
    if num_rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sidecar.rejected.items())
        print(
            f"qwen-data: left out {num_rejected:,} of {sidecar.records_in:,} records ({reasons}): {listed}",
            file=sys.stderr,
        )
    num_samples = sidecar.records_in - num_rejected
    check_rejected(sidecar.rejected, num_samples, options.max_bad, listed, f"the corpus {options.output}")
    return 0


def _summary(prefix: str, kind: str, sidecar: "Sidecar", seconds: float) -> str:
    num_samples = sidecar.records_in - sum(sidecar.rejected.values())
    assert sidecar.chat is not None
    truncated = f", {sidecar.chat.truncated:,} cut at the end of a turn" if sidecar.chat.truncated else ""
    job = {"dialogues": "sft", "pairs": "reward", "prompts": "ppo"}[kind]
    return (
        f"{prefix}: {num_samples:,} {kind} of {sidecar.records_in:,} records, {sidecar.num_tokens:,} tokens{truncated} "
        f"in {seconds:,.1f} s\n"
        f"look at one:  qwen-data inspect {shlex.quote(prefix)} --document 0\n"
        f"train on it:  qwen-megatron {job} RECIPE.yaml {shlex.quote(f'data.blend=[{prefix}]')}"
    )
