"""`qwen-megatron logits`: logits of given token ids, to compare a model with another system."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_megatron.cli.inference_options import add_opening, opening_of
from qwen_megatron.cli.token_ids import check_output, check_range, read_ids
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
    add_opening(parser, has_layout=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        CheckpointError, DataError, PlatformError: from source and ids.
        ConfigError: if the output cannot be where it is asked for.
    """
    ids_bs = read_ids(args.input_ids)
    check_output(args.output)
    silence_libraries()
    from qwen_megatron.inference.opening import open_generator

    with open_generator(args.source, opening_of(args), longest=ids_bs.shape[1], with_text=False) as generator:
        model = generator.staged.model
        check_range(args.input_ids, ids_bs, model.num_tokens_in_vocabulary)
        write_logits(model, ids_bs, args.output)
    print(f"wrote {args.output}: {[*ids_bs.shape, model.num_tokens_in_vocabulary]}, fp32")
    return 0


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
