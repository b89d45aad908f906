"""`qwen-megatron logits`: logits of given token ids, to compare a model with another system."""

from __future__ import annotations

import argparse
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_megatron.cli.nonfinite import add_allow_nonfinite
from qwen_megatron.cli.settings import add_model
from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.libraries import silence_libraries

if TYPE_CHECKING:
    import numpy as np

EPILOG = """examples:
  python -c 'import numpy; numpy.save("ids.npy", numpy.array([[9707, 1879]]))'
  qwen-megatron logits runs/first --input-ids ids.npy --output logits.npy
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "logits",
        help="compute the logits of token ids",
        description="Computes logits in fp32: int64 ids [batch, seq] in, fp32 logits [batch, seq, vocab] out. Works in "
        "one process on a checkpoint of any layout or on a Hugging Face folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder"
    )
    parser.add_argument("--input-ids", required=True, type=Path, metavar="IDS.npy", help="int64 [batch, seq]")
    parser.add_argument("--output", required=True, type=Path, metavar="LOGITS.npy", help="fp32 [batch, seq, vocab]")
    add_model(parser)
    add_allow_nonfinite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and ids.
        ConfigError: if the output cannot be where it is asked for.
    """
    ids_bs = read_ids(args.input_ids)
    if not args.output.parent.is_dir():
        raise ConfigError(f"--output={args.output}: {args.output.parent} is not a folder; make it first")
    if args.output.is_dir():
        raise ConfigError(f"--output={args.output}: is a folder; name a file")
    silence_libraries()
    from qwen_megatron.inference.loading import load_for_inference, single_process

    with single_process() as groups:
        model = load_for_inference(args.source, groups, name=args.model, allow_nonfinite=args.allow_nonfinite)
        check_range(args.input_ids, ids_bs, model.num_tokens_in_vocabulary)
        write_logits(model, ids_bs, args.output)
    print(f"wrote {args.output}: {[*ids_bs.shape, model.num_tokens_in_vocabulary]}, fp32")
    return 0


def read_ids(path: Path) -> np.ndarray:
    """Token ids from a .npy file, int64 [b, s].

    Raises:
        DataError: if it is not such a file; a pickle is not looked into.
    """
    import numpy as np

    try:
        # Mapped: a header that promises more than the file holds is found before anything is allocated.
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, MemoryError, tokenize.TokenError) as error:
        # The header is a piece of Python, which numpy reads as such.
        raise DataError(f"{path}: is not a readable .npy file of numbers ({error})") from error
    if not isinstance(ids, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays; save one array with numpy.save")
    if ids.dtype != np.int64:
        raise DataError(f"{path}: has dtype {ids.dtype}; must be int64, use ids.astype('int64')")
    if ids.ndim != 2 or 0 in ids.shape:
        raise DataError(f"{path}: has shape {list(ids.shape)}; must be [batch, seq] with at least one token")
    return np.array(ids)


def check_range(path: Path, ids_bs: np.ndarray, vocab_size: int) -> None:
    """Refuses ids that the vocabulary does not have.

    Raises:
        DataError: naming the first of them.
    """
    wrong = (ids_bs < 0) | (ids_bs >= vocab_size)
    if wrong.any():
        row, column = (int(index[0]) for index in wrong.nonzero())
        raise DataError(
            f"{path}: id {ids_bs[row, column]} at [{row}, {column}] is not in the model's vocabulary "
            f"(0 to {vocab_size - 1})"
        )


def write_logits(model: Any, ids_bs: np.ndarray, path: Path) -> None:
    """Writes the file sequence by sequence: the logits of a batch may not fit in memory."""
    import numpy as np
    import torch

    from data_tools.io.atomic_file import atomic_output
    from qwen_megatron.inference.loading import logits

    shape = (*ids_bs.shape, model.num_tokens_in_vocabulary)
    device = next(model.parameters()).device
    with atomic_output(path) as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for ids_s in ids_bs:
            logits_bsv = logits(model, torch.from_numpy(ids_s[None]).to(device))
            stream.write(logits_bsv.cpu().numpy().astype("<f4").data)
