"""`qwen-megatron generate`: the greedy continuation of a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from data_tools.io.plain_text import printable
from qwen_megatron.cli.nonfinite import add_allow_nonfinite
from qwen_megatron.cli.settings import add_model
from qwen_megatron.errors import ConfigError
from qwen_megatron.libraries import silence_libraries


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "generate",
        help="continue a text",
        description="Continues a text with the most likely token, again and again, up to the end of the document. "
        "Works in one process on a checkpoint of any layout or on a Hugging Face folder. Prints the prompt and what "
        "follows.",
        epilog="examples:\n  qwen-megatron generate runs/first --prompt 'def main(' --max-new-tokens 40\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="ordinary text; control tokens are not special")
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N", help="tokens to add at most (64)")
    add_model(parser)
    add_allow_nonfinite(parser)
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A count of at least one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and prompt.
        ConfigError: if the prompt is empty.
    """
    if not args.prompt:
        raise ConfigError("--prompt='': must have at least one character")
    silence_libraries()
    from qwen_megatron.inference.continuation import continue_text

    text = continue_text(
        args.source, args.prompt, args.max_new_tokens, name=args.model, allow_nonfinite=args.allow_nonfinite
    )
    print(printable(text) if sys.stdout.isatty() else text)
    return 0
