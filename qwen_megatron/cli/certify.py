"""`qwen-megatron certify`: proof on your own recipe that the layout changes the speed, not the result."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_megatron.cli.settings import add_settings, split_settings
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.errors import ConfigError, TrainingError
from qwen_megatron.jobs.preflight import prepare_config
from qwen_megatron.report.run_files import read_run

EPILOG = """examples:
  qwen-megatron certify examples/demo.yaml
  qwen-megatron certify examples/qwen-7b.yaml data.blend=[data/corpus] --layouts tp2-sp,pp2-vpp2,tp2-pp2-dp2 --steps 5

A layout is a list of tp, pp, vpp, cp, dp with their sizes, and sp. The recipe is scaled down to fit one machine
(layers, width, sequence, batch; the vocabulary, the data and the rate stay) and trained in fp32, once in one process
and once in each layout.

exit status: 0 all layouts agree, 1 one does not or a run failed, 2 wrong usage
"""

KEYS = {
    "tp": "parallel.tensor_model_parallel_size",
    "pp": "parallel.pipeline_model_parallel_size",
    "vpp": "parallel.virtual_pipeline_model_parallel_size",
    "cp": "parallel.context_parallel_size",
}
DEFAULT_LAYOUTS = "tp2-sp,pp2,cp2,dp2,tp2-sp-pp2-dp2"
TOLERANCE = 1e-5

# Divides by 2, 4 and 8 wherever a layout splits it.
SCALED = {
    "model.num_layers": 8,
    "model.hidden_size": 64,
    "model.ffn_hidden_size": 176,
    "model.num_attention_heads": 8,
    "model.num_query_groups": 8,
    "model.kv_channels": 8,
    "training.precision": "fp32",
    "training.seq_length": 256,
    "training.micro_batch_size": 1,
    "training.global_batch_size": 8,
    "training.rampup_start_batch_size": "null",
    "training.rampup_batch_size_increment": "null",
    "training.rampup_samples": "null",
    "data.eval_samples": 0,
    "data.num_workers": 1,
    "checkpoint.load": "none",
    "checkpoint.init_from": "null",
    "logging.tensorboard": "false",
    "parallel.world_size": "null",
    "parallel.sequence_parallel": "false",
    "parallel.overlap_param_gather": "false",
    "parallel.overlap_grad_reduce": "false",
    "parallel.recompute_granularity": "none",
    "parallel.virtual_pipeline_model_parallel_size": "null",
    "parallel.num_layers_in_first_pipeline_stage": "null",
    "parallel.num_layers_in_last_pipeline_stage": "null",
    "parallel.tensor_model_parallel_size": 1,
    "parallel.pipeline_model_parallel_size": 1,
    "parallel.context_parallel_size": 1,
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout to compare.

    Attributes:
        name: As the user wrote it.
        world_size: Processes.
        overrides: Settings.
    """

    name: str
    world_size: int
    overrides: tuple[str, ...]


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "certify",
        help="show that layouts train alike on your recipe",
        description="Trains a few steps of a recipe, scaled down, in each layout and compares them with one process.",
        usage="%(prog)s [CONFIG.yaml] [SECTION.KEY=VALUE ...] [--layouts A,B,...] [--steps N]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    parser.add_argument("--layouts", default=DEFAULT_LAYOUTS, help=f"comma-separated (default: {DEFAULT_LAYOUTS})")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps in each layout (default: 5)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trains and prints the table.

    Raises:
        ConfigError: if a layout is none, or the recipe does not fit it.
        TrainingError: if a run fails; its last lines are in the message.
    """
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps}: must be at least 1")
    layouts = [parse_layout(text) for text in args.layouts.split(",")]
    path, overrides = split_settings(args.settings)
    settings = [*overrides, *(f"{key}={value}" for key, value in SCALED.items()), f"training.exit_iter={args.steps}"]
    with tempfile.TemporaryDirectory(prefix="certify-") as folder:
        jobs = [Layout(name="one process", world_size=1, overrides=()), *layouts]
        # Every layout is checked before the first one is trained.
        for job in jobs:
            checked(path, [*settings, *job.overrides, f"checkpoint.directory={folder}/run"], job)
        losses = {}
        for number, job in enumerate(jobs):
            print(f"training {args.steps} steps: {job.name}", file=sys.stderr, flush=True)
            directory = Path(folder) / str(number)
            losses[job.name] = train(path, [*settings, *job.overrides, f"checkpoint.directory={directory}"], job)
    return report(losses)


def parse_layout(text: str) -> Layout:
    """A layout such as `tp2-sp-pp2-vpp2-dp2`.

    Raises:
        ConfigError: naming the part that is none.
    """
    sizes = {"tp": 1, "pp": 1, "cp": 1, "dp": 1}
    overrides = []
    for part in text.strip().split("-"):
        match = re.fullmatch(r"(vpp|tp|pp|cp|dp)([1-9][0-9]*)", part)
        if part == "sp":
            overrides.append("parallel.sequence_parallel=true")
        elif match is None:
            raise ConfigError(
                f"--layouts {text}: {part!r} must be sp, or tp, pp, vpp, cp or dp with a size, such as tp2"
            )
        else:
            axis, size = match[1], int(match[2])
            sizes[axis] = size
            if axis != "dp":
                overrides.append(f"{KEYS[axis]}={size}")
    world_size = sizes["tp"] * sizes["pp"] * sizes["cp"] * sizes["dp"]
    return Layout(name=text.strip(), world_size=world_size, overrides=tuple(overrides))


def checked(path: str | None, settings: list[str], job: Layout) -> ResolvedConfig:
    """The resolved configuration of a layout.

    Raises:
        ConfigError: with every problem, the layout named.
    """
    try:
        return prepare_config(path, settings, job.world_size, with_files=True)
    except ConfigError as error:
        raise ConfigError([f"layout {job.name}: {problem}" for problem in error.problems]) from error


def train(path: str | None, settings: list[str], job: Layout) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step.

    Raises:
        TrainingError: if the run fails.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(job.world_size)]
    command = [*launcher, "-m", "qwen_megatron", "pretrain", *([path] if path else []), *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise TrainingError(f"layout {job.name}: the run failed:\n{last}")
    directory = settings[-1].partition("=")[2]
    return [(row["loss"], row["grad_norm"]) for row in read_run(Path(directory)).steps]


def report(losses: dict[str, list[tuple[float, float]]]) -> int:
    """Prints the table of largest relative differences; the exit status."""
    from rich.console import Console
    from rich.table import Table

    reference, *others = losses
    table = Table(title=f"largest relative difference from one process over {len(losses[reference])} steps, fp32")
    for column in ("layout", "loss", "gradient norm", f"within {TOLERANCE:.0e}"):
        table.add_column(column)
    worst = 0.0
    for name in others:
        pairs = list(zip(losses[reference], losses[name], strict=True))
        loss, norm = (max(abs(new[i] - old[i]) / abs(old[i]) for old, new in pairs) for i in range(2))
        worst = max(worst, loss, norm)
        table.add_row(name, f"{loss:.1e}", f"{norm:.1e}", "yes" if max(loss, norm) <= TOLERANCE else "NO")
    Console().print(table)
    return 0 if worst <= TOLERANCE else 1
