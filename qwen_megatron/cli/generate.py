"""`qwen-megatron generate`: what follows texts or token ids."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.io.plain_text import printable
from qwen_megatron.cli.inference_options import (
    add_opening,
    add_sampling,
    count,
    is_first_rank,
    opening_of,
    sampling_of,
)
from qwen_megatron.cli.token_ids import check_output, check_range, read_ids
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.launcher import settle_inference
from qwen_megatron.libraries import first_imports, silence_libraries

if TYPE_CHECKING:
    import numpy as np

    from qwen_megatron.inference.completion import Completion
    from qwen_megatron.inference.generator import Generator
    from qwen_megatron.inference.sampling import Sampling

EPILOG = """examples:
  qwen-megatron generate runs/first --prompt 'def main(' --max-new-tokens 40
  qwen-megatron generate exports/first --prompt 'Once' --prompt 'Twice upon' --temperature 0.8 --top-p 0.9 --seed 1
  torchrun --nproc-per-node 4 -m qwen_megatron generate runs/first --prompt 'Once' --pipeline-model-parallel-size 2
  compare with another system, in any vocabulary:
    qwen-megatron generate exports/first --input-ids ids.npy --output new.npy --max-new-tokens 20
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "generate",
        help="continue texts or token ids",
        description="Continues texts, with the likeliest token or with drawn ones, up to the end of the document. "
        "Reads a checkpoint of any layout or a Hugging Face folder; runs in one process, or under torchrun on several. "
        "Prints the prompt and what follows, as it comes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="ordinary text, control tokens are not special; several are continued together",
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each prompt, with its tokens")
    parser.add_argument(
        "--input-ids", type=Path, metavar="IDS.npy", help="prompts as int64 [batch, seq] instead; needs --output"
    )
    parser.add_argument("--output", type=Path, metavar="NEW.npy", help="new ids, int64 [batch, N], with --input-ids")
    parser.add_argument(
        "--stop-id",
        type=count,
        metavar="ID",
        help="with --input-ids: ends a row, which is filled with it (none: all rows get N tokens)",
    )
    add_sampling(parser)
    add_opening(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and prompt.
        ConfigError: if an option is wrong.
    """
    check_options(args)
    ids_bs = None if args.input_ids is None else read_ids(args.input_ids)
    settle_inference()
    silence_libraries()
    if ids_bs is not None:
        return continue_ids(args, ids_bs)
    with first_imports():
        from qwen_megatron.inference.opening import open_generator

    sampling = sampling_of(args)
    # Of a byte-level tokenizer, a text has at most as many tokens as bytes.
    longest = max(len(prompt.encode(errors="replace")) for prompt in args.prompt) + args.max_new_tokens
    with open_generator(args.source, opening_of(args), longest=longest) as generator:
        if len(args.prompt) == 1 and not args.json:
            print_stream(generator, args.prompt[0], sampling)
        else:
            completions = generator.generate(args.prompt, sampling)
            for prompt, completion in zip(args.prompt, completions, strict=True):
                print_whole(prompt, completion, as_json=args.json)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuses options that do not go together.

    Raises:
        ConfigError: with all problems.
    """
    problems = []
    if (args.prompt is None) == (args.input_ids is None):
        problems.append("give either --prompt or --input-ids")
    if (args.output is None) != (args.input_ids is None):
        problems.append("--input-ids and --output go together; give both")
    if args.stop_id is not None and args.input_ids is None:
        problems.append(f"--stop-id={args.stop_id}: is for --input-ids; use --stop TEXT")
    if args.stop and args.input_ids is not None:
        problems.append("--stop: is for --prompt; use --stop-id ID")
    problems += ["--prompt='': must have at least one character" for prompt in args.prompt or () if not prompt]
    if problems:
        raise ConfigError(problems)
    if args.output is not None:
        check_output(args.output)


def continue_ids(args: argparse.Namespace, ids_bs: np.ndarray) -> int:
    """Continues rows of ids into a file."""
    import numpy as np

    from data_tools.io.atomic_file import atomic_output
    from qwen_megatron.inference.opening import open_generator

    stop = () if args.stop_id is None else (args.stop_id,)
    longest = ids_bs.shape[1] + args.max_new_tokens
    sampling = sampling_of(args, stop)
    with open_generator(args.source, opening_of(args), longest=longest, with_text=False) as generator:
        check_range(args.input_ids, ids_bs, generator.staged.vocab_size)
        completions = generator.generate(ids_bs.tolist(), sampling)
    new_bn = np.full((len(completions), args.max_new_tokens), args.stop_id or 0, dtype=np.int64)
    for row, completion in zip(new_bn, completions, strict=True):
        row[: len(completion.tokens)] = completion.tokens
    if is_first_rank():
        with atomic_output(args.output) as stream:
            np.lib.format.write_array(stream, new_bn, allow_pickle=False)
        print(f"wrote {args.output}: {list(new_bn.shape)}, int64")
    return 0


def print_stream(generator: Generator, prompt: str, sampling: Sampling) -> None:
    """Prints the prompt and what follows, token by token."""
    assert generator.vocabulary is not None
    tokens = generator.ids_of(prompt, 0)
    show(generator.vocabulary.decode(tokens))
    for piece in generator.stream([tokens], sampling):
        show(piece.text)
    show("\n")


def print_whole(prompt: str, completion: Completion, *, as_json: bool) -> None:
    """Prints a prompt and all that follows."""
    if not as_json:
        show(f"{prompt}{completion.text}\n")
        return
    record = {
        "prompt": prompt,
        "text": completion.text,
        "tokens": completion.tokens,
        "log_probabilities": completion.log_probabilities,
        "finish_reason": completion.finish_reason,
    }
    if is_first_rank():
        print(json.dumps(record, ensure_ascii=False))


def show(text: str) -> None:
    """Prints on the first rank; control characters reach no terminal."""
    if text and is_first_rank():
        print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
