"""`qwen-megatron convert`: checkpoints to and from Hugging Face folders, and their comparison."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from data_tools.io.plain_text import printable
from qwen_megatron.cli.nonfinite import add_allow_nonfinite
from qwen_megatron.cli.settings import add_model
from qwen_megatron.libraries import silence_libraries

EPILOG = """examples:
  export what was trained, for transformers:
    qwen-megatron convert to-hf runs/first exports/first
  compare the export with the checkpoint:
    qwen-megatron convert verify runs/first/iter_0001000 exports/first
  make a checkpoint of a Hugging Face folder, to go on training from its weights (checkpoint.init_from):
    qwen-megatron convert from-hf downloads/Qwen1.5-0.5B checkpoints/qwen1.5-0.5b

exit status: 0 done, 1 the conversion or the comparison failed, 2 wrong usage, 130 interrupted
"""
TO_HF_EXAMPLES = """examples:
  qwen-megatron convert to-hf runs/first exports/first
  qwen-megatron convert to-hf runs/first/iter_0001000 exports/first --format qwen2 --dtype fp32 --max-shard-size 2GB
"""
FROM_HF_EXAMPLES = """examples:
  qwen-megatron convert from-hf downloads/Qwen1.5-0.5B checkpoints/qwen1.5-0.5b
"""
VERIFY_EXAMPLES = """examples:
  qwen-megatron convert verify runs/first/iter_0001000 exports/first
"""
TO_SAFETENSORS_EXAMPLES = """examples:
  qwen-megatron convert to-safetensors downloads/old downloads/old-safetensors
"""
CHECKPOINT_HELP = "an iter_NNNNNNN folder, or a run's folder, whose newest checkpoint is taken"
DEFAULT_TOLERANCE = 1e-4
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "convert",
        help="convert checkpoints to and from Hugging Face folders",
        description="Converts checkpoints to and from Hugging Face folders, and compares the two. Works in one process "
        "on a checkpoint of any layout; tensors are streamed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add_to_hf(actions)
    add_from_hf(actions)
    add_verify(actions)
    add_to_safetensors(actions)


def add_to_hf(actions: Any) -> None:
    """Registers `convert to-hf`."""
    parser = actions.add_parser(
        "to-hf",
        help="write a Hugging Face folder",
        description="Writes a Hugging Face folder.",
        epilog=TO_HF_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument(
        "--format",
        choices=("qwen3", "qwen2", "qwen1"),
        help="qwen3, qwen2: Qwen3ForCausalLM and Qwen2ForCausalLM of transformers; qwen1: the layout of the first Qwen "
        "series (default: qwen3 for models with model.qk_layernorm, qwen1 for those with dynamic NTK or LogN scaling, "
        "which only that can express, else qwen2)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp32"),
        help="bf16: the weights the model computed with; fp32: the optimizer's master weights where the checkpoint has "
        "them (default: the model's weights, in the dtype they are stored in)",
    )
    parser.add_argument(
        "--max-shard-size",
        type=byte_size,
        default=5 * 10**9,
        metavar="SIZE",
        help="largest weight file, such as 500MB (5GB)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in OUT")
    add_check(parser)
    add_model(parser)
    add_allow_nonfinite(parser)
    parser.set_defaults(run=run_to_hf)


def add_from_hf(actions: Any) -> None:
    """Registers `convert from-hf`."""
    parser = actions.add_parser(
        "from-hf",
        help="make a checkpoint of a Hugging Face folder",
        description="Makes a checkpoint that holds the weights of a folder of Qwen, Qwen1.5, Qwen2, Qwen2.5 or "
        "Qwen3, dense (safetensors only; no code in it is run).",
        epilog=FROM_HF_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a Hugging Face folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint's folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in OUT")
    add_check(parser)
    add_allow_nonfinite(parser)
    parser.set_defaults(run=run_from_hf)


def add_check(parser: argparse.ArgumentParser) -> None:
    """An option of what writes a model."""
    parser.add_argument(
        "--verify", action="store_true", help="compare the two afterwards, as `convert verify` does (status 1 if not)"
    )


def add_verify(actions: Any) -> None:
    """Registers `convert verify`."""
    parser = actions.add_parser(
        "verify",
        help="compare a checkpoint with a Hugging Face folder",
        description="Compares every tensor bit for bit and the logits of fixed pseudo-random tokens in fp32.",
        epilog=VERIFY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("folder", metavar="HF_DIR", type=Path, help="a Hugging Face folder")
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=DEFAULT_TOLERANCE,
        metavar="X",
        help="largest absolute difference of a logit that is good (1e-4)",
    )
    parser.add_argument(
        "--layer-by-layer",
        action="store_true",
        default=None,
        help="hold one layer of either side in memory (default: only where the model in fp32 does not fit)",
    )
    add_model(parser)
    parser.set_defaults(run=run_verify)


def add_to_safetensors(actions: Any) -> None:
    """Registers `convert to-safetensors`."""
    parser = actions.add_parser(
        "to-safetensors",
        help="write a Hugging Face folder of pickles (.bin) with safetensors",
        description="Reads pytorch_model*.bin with torch's reader of plain tensors, which refuses everything else, and "
        "writes the folder with safetensors. Other commands never open a pickle.",
        epilog=TO_SAFETENSORS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a Hugging Face folder with pickled weights")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in OUT")
    parser.set_defaults(run=run_to_safetensors)


def byte_size(text: str) -> int:
    """A number of bytes such as 500MB."""
    match = re.fullmatch(r"([0-9]{1,15})(|KB|MB|GB)", text.upper())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write a number of bytes, or such as 500MB or 5GB")
    return int(match[1]) * UNITS[match[2]]


def tolerance(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def run_to_hf(args: argparse.Namespace) -> int:
    """Runs `convert to-hf`."""
    silence_libraries()
    from qwen_megatron.convert.name_map import Format
    from qwen_megatron.convert.to_hf import to_hf

    written = to_hf(
        args.checkpoint,
        args.out,
        hf_format=None if args.format is None else Format(args.format),
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
        name=args.model,
        allow_nonfinite=args.allow_nonfinite,
    )
    print(f"wrote {args.out} ({written.value})")
    return compare(args.checkpoint, args.out, name=args.model) if args.verify else 0


def run_from_hf(args: argparse.Namespace) -> int:
    """Runs `convert from-hf`."""
    silence_libraries()
    from qwen_megatron.convert.from_hf import from_hf

    from_hf(args.folder, args.out, overwrite=args.overwrite, allow_nonfinite=args.allow_nonfinite)
    print(f"wrote {args.out}")
    return compare(args.out, args.folder) if args.verify else 0


def run_to_safetensors(args: argparse.Namespace) -> int:
    """Runs `convert to-safetensors`."""
    silence_libraries()
    from qwen_megatron.convert.pickled_folder import to_safetensors

    to_safetensors(args.folder, args.out, overwrite=args.overwrite)
    print(f"wrote {args.out}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Runs `convert verify`."""
    silence_libraries()
    return compare(
        args.checkpoint, args.folder, tolerance=args.tolerance, name=args.model, by_layers=args.layer_by_layer
    )


def compare(
    checkpoint: Path,
    folder: Path,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    name: str | None = None,
    by_layers: bool | None = None,
) -> int:
    """Compares as `convert verify` does and prints the evidence; the exit status."""
    from qwen_megatron.convert.hf_paths import CONFIG
    from qwen_megatron.convert.verify import verify
    from qwen_megatron.inference.loading import single_process

    with single_process() as groups:
        report = verify(checkpoint, folder, groups, tolerance=tolerance, name=name, by_layers=by_layers)
    equal = report.num_tensors - len(report.different_tensors)
    print(f"tensors: {equal} of {report.num_tensors} equal bit for bit; names and shapes as {CONFIG} says")
    for name in report.different_tensors[:10]:
        print(f"  differs: {printable(name)}")
    how = "layer by layer" if report.by_layers else "in whole models"
    print(
        f"logits: largest difference {report.max_difference:.3g}, tolerance {report.tolerance:g}; "
        f"{report.num_tokens} tokens in fp32, {how}"
    )
    if report.first_difference is not None:
        print(f"  first difference: {report.first_difference}")
    print("verified: both are the same model" if report.is_good else "FAILED: these are different models")
    return 0 if report.is_good else 1
