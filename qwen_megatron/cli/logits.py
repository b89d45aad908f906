"""`qwen-megatron logits`: logits of given token ids, to compare a model with another system."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_megatron.cli.inference_options import add_opening, opening_of
from qwen_megatron.cli.token_ids import check_output, check_range, read_ids
from qwen_megatron.libraries import first_imports, silence_libraries

if TYPE_CHECKING:
    import numpy as np

    from qwen_megatron.inference.staged_model import StagedModel

# Tokens whose logits are held at once: 155 MB in Qwen's vocabulary.
TOKENS_AT_ONCE = 256

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
    with first_imports():
        from qwen_megatron.inference.opening import open_generator

    with open_generator(args.source, opening_of(args), longest=ids_bs.shape[1], with_text=False) as generator:
        vocab_size = generator.staged.vocab_size
        check_range(args.input_ids, ids_bs, vocab_size)
        write_logits(generator.staged, ids_bs, args.output)
    print(f"wrote {args.output}: {[*ids_bs.shape, vocab_size]}, fp32")
    return 0


def write_logits(staged: StagedModel, ids_bs: np.ndarray, path: Path) -> None:
    """Writes the file some tokens at a time: the logits of a sequence may not fit in memory."""
    import numpy as np
    import torch

    from data_tools.io.atomic_file import atomic_output

    shape = (*ids_bs.shape, staged.vocab_size)
    with atomic_output(path) as stream, torch.inference_mode():
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for ids_s in ids_bs:
            hidden_bsh = staged.hidden(torch.from_numpy(ids_s[None]).to(staged.device))
            assert hidden_bsh is not None  # One process has all stages.
            for hidden_nh in hidden_bsh[0].split(TOKENS_AT_ONCE):
                stream.write(staged.logits(hidden_nh).cpu().numpy().astype("<f4").data)
