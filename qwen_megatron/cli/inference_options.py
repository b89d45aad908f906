"""Options of commands that run a model: which, on what layout, how it reads long texts, how it samples."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from qwen_megatron.cli.nonfinite import add_allow_nonfinite
from qwen_megatron.cli.settings import add_model

if TYPE_CHECKING:
    from qwen_megatron.inference.opening import Opening
    from qwen_megatron.inference.sampling import Sampling


def add_opening(parser: argparse.ArgumentParser, *, has_layout: bool = True, has_extension: bool = True) -> None:
    """Adds how a model is read.

    Args:
        has_layout: It may lie on several processes.
        has_extension: What is done beyond the native length can be chosen.
    """
    add_model(parser)
    add_allow_nonfinite(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of weights and products (fp32)")
    if has_layout:
        parser.add_argument(
            "--tensor-model-parallel-size",
            type=positive,
            metavar="N",
            help="under torchrun: processes that share each layer (all of a pipeline stage)",
        )
        parser.add_argument(
            "--pipeline-model-parallel-size",
            type=positive,
            default=1,
            metavar="N",
            help="under torchrun: pipeline stages (1)",
        )
    if has_extension:
        add_extension(parser)


def add_extension(parser: argparse.ArgumentParser) -> None:
    """Adds what is done beyond the native length."""
    parser.add_argument(
        "--extend",
        default="checkpoint",
        metavar="HOW",
        help="for inputs beyond the native length: checkpoint (as its configuration says), none, ntk, dynamic-ntk, "
        "logn, dynamic-ntk+logn, dynamic-ntk+logn+window (checkpoint)",
    )
    add_windows(parser)


def add_windows(parser: argparse.ArgumentParser) -> None:
    """Adds windows and the length beyond which a model is stretched."""
    parser.add_argument(
        "--windows",
        default="checkpoint",
        metavar="SIZES",
        help="tokens that each layer sees: checkpoint (as its configuration says), none, one number, LOWEST:HIGHEST "
        "layer, or one number for each layer; 0 for all (checkpoint)",
    )
    parser.add_argument(
        "--native-length",
        type=positive,
        metavar="N",
        help="context the model was trained on, in tokens (as the checkpoint or config.json says)",
    )


def opening_of(args: argparse.Namespace) -> Opening:
    """The chosen options."""
    from qwen_megatron.inference.opening import Opening

    return Opening(
        name=args.model,
        allow_nonfinite=args.allow_nonfinite,
        precision=args.precision,
        tensor_size=getattr(args, "tensor_model_parallel_size", 1),
        pipeline_size=getattr(args, "pipeline_model_parallel_size", 1),
        extend=getattr(args, "extend", "checkpoint"),
        windows=getattr(args, "windows", "checkpoint"),
        native_length=getattr(args, "native_length", None),
    )


def add_sampling(parser: argparse.ArgumentParser, *, max_new_tokens: int = 64) -> None:
    """Adds how texts go on."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help=f"tokens to add at most ({max_new_tokens})",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="divides logits; 0 takes the likeliest token (0)"
    )
    parser.add_argument("--top-k", type=count, default=0, metavar="K", help="draw from the K likeliest; 0 for all (0)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest that have this probability (1)"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="for tokens that the text has; 1 is none (1)"
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="fixes the draws (0)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be given several times"
    )


def sampling_of(args: argparse.Namespace, stop_token_ids: tuple[int, ...] | None = None) -> Sampling:
    """The chosen options.

    Raises:
        ConfigError: if one is out of range.
    """
    from qwen_megatron.inference.sampling import Sampling

    return Sampling(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop_token_ids=stop_token_ids,
        stop=tuple(args.stop),
    )


def is_first_rank() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def positive(text: str) -> int:
    """A count of at least one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def count(text: str) -> int:
    """A count, perhaps none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)
