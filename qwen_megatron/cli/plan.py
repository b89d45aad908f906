"""`qwen-megatron plan`: what a run needs on any number of GPUs, and how long it takes, without any."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from data_tools.io.atomic_file import write_atomically
from data_tools.io.plain_text import printable
from data_tools.settings.problems import Problems
from qwen_megatron.cli.settings import add_settings
from qwen_megatron.config.load import read_config, split_settings
from qwen_megatron.config.schema import Settings
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.kinds.table import split_job
from qwen_megatron.libraries import silence_libraries
from qwen_megatron.planning.goodput import GPU_HOURS_BETWEEN_FAILURES, failures_of
from qwen_megatron.planning.machine import Machine, load_machine, machines
from qwen_megatron.planning.plan import Plan, as_dict, as_text
from qwen_megatron.planning.search import search
from qwen_megatron.report.plan_page import plan_page

EPILOG = """examples:
  qwen-megatron plan recipe:qwen-72b --gpus 1024 --gpu h100-80gb
  qwen-megatron plan recipe:qwen-7b training.seq_length=8192 --gpus 64 --gpu a100-80gb --json
  one choice made, the rest searched:
    qwen-megatron plan recipe:qwen-14b parallel.tensor_model_parallel_size=2 --gpus 256 --gpu h200-141gb
  the program's rank 5, run on tensors without content:
    qwen-megatron plan recipe:qwen-7b --gpus 64 --gpu h100-80gb --dry-run --rank 5

  measure this machine, and plan for it:
    qwen-megatron plan --calibrate mine.yaml
    qwen-megatron plan recipe:demo --gpus 2 --gpu mine.yaml

The layout of the recipe is not binding; settings of the layout on the command line are. Corpora are not opened.

exit status: 0 a layout fits, 1 none does, 2 the configuration is wrong
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "plan",
        help="find the best layout for so many GPUs, with memory, time and cost, without a GPU",
        description="Searches all layouts of a job on so many GPUs: which fit, the fastest, memory of every pipeline "
        "stage, time of a step by part, days and cost to the recipe's tokens, and what limits it.",
        usage="%(prog)s [JOB] [CONFIG ...] [SECTION.KEY=VALUE ...] --gpus N [--gpu NAME] [--json]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    parser.add_argument("--gpus", type=positive, metavar="N", help="how many GPUs; needed")
    parser.add_argument(
        "--gpu",
        default="h100-80gb",
        metavar="NAME",
        help=f"{', '.join(machines())}, or a hardware file (default: h100-80gb)",
    )
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="layouts to show (default: 10)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page about the plan too")
    parser.add_argument(
        "--price", type=not_negative, metavar="US$", help="of a GPU and hour (default: the hardware file's)"
    )
    dry = parser.add_argument_group("dry run")
    dry.add_argument(
        "--dry-run", action="store_true", help="run a rank of the best layout on tensors without content, and compare"
    )
    dry.add_argument("--rank", type=int, default=0, metavar="R", help="which rank (default: 0)")
    dry.add_argument(
        "--microbatches", type=positive, metavar="N", help="of the step (default: as many as fill the pipeline twice)"
    )
    stops = parser.add_argument_group("failures")
    stops.add_argument(
        "--gpu-hours-between-failures",
        type=not_negative,
        default=GPU_HOURS_BETWEEN_FAILURES,
        metavar="HOURS",
        help="after which a GPU stops the job (default: %(default).0f, Llama 3's 419 stops in 54 days on 16,384 GPUs)",
    )
    stops.add_argument(
        "--save-seconds",
        type=not_negative,
        default=10.0,
        metavar="S",
        help="for which a save keeps the job (default: 10)",
    )
    stops.add_argument(
        "--restart-seconds", type=not_negative, default=300.0, metavar="S", help="from a stop to a step (default: 300)"
    )
    measure = parser.add_argument_group("this machine")
    measure.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="measure this machine, write a hardware file for --gpu, and stop"
    )
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def not_negative(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ConfigError: with all problems.
    """
    if args.calibrate is not None:
        return calibrate_machine(args)
    if args.gpus is None:
        raise ConfigError("--gpus: is needed: how many GPUs the job has, such as --gpus 64")
    machine = load_machine(args.gpu)
    if args.price is not None:
        machine = dataclasses.replace(machine, price_per_hour=args.price)
    kind, words = split_job(args.settings)
    files, overrides = split_settings(words)
    plan = planned(kind, files, overrides, machine, args)
    if args.dry_run:
        return dry_run(plan, args)
    if args.html is not None:
        title = f"{' '.join(words) or kind.name} on {args.gpus:,} x {machine.name}"
        write_atomically(args.html, plan_page(as_dict(plan, args.top), title).encode("utf-8", errors="replace"))
    if args.json:
        print(json.dumps(as_dict(plan, args.top), indent=2))
    else:
        print(printable(as_text(plan, args.top)))
    return 0 if plan.found.layouts else 1


def planned(kind: JobKind, files: list[str], overrides: list[str], machine: Machine, args: argparse.Namespace) -> Plan:
    """Searches.

    Raises:
        ConfigError: with all problems.
    """
    settings = read_settings(files, overrides)
    fixed = [text.partition("=")[0] for text in overrides]
    found = search(settings, args.gpus, machine, kind, fixed=fixed)
    failures = failures_of(args.gpus, args.save_seconds, args.restart_seconds, args.gpu_hours_between_failures)
    return Plan(found=found, machine=machine, gpus=args.gpus, failures=failures)


def read_settings(files: list[str], overrides: list[str]) -> Settings:
    """The settings as given.

    Raises:
        ConfigError: with everything that cannot be read.
    """
    problems = Problems()
    settings = read_config(files, overrides, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return settings


def calibrate_machine(args: argparse.Namespace) -> int:
    """Measures this machine and writes a hardware file."""
    base = load_machine(args.gpu)
    silence_libraries()
    # Only now: importing torch and Megatron-Core takes seconds.
    from qwen_megatron.planning.calibration import calibrate, write_machine
    from qwen_megatron.platforms import get_platform

    measured = calibrate(get_platform("auto"), base)
    write_machine(measured, args.calibrate, base.name)
    print(args.calibrate)
    return 0


def dry_run(plan: Plan, args: argparse.Namespace) -> int:
    """Runs one rank on tensors without content, and prints what it held and did beside what was planned."""
    if args.rank not in range(args.gpus):
        raise ConfigError(f"--rank {args.rank}: must lie between 0 and {args.gpus - 1}, because of --gpus {args.gpus}")
    silence_libraries()
    # Only now: importing torch and Megatron-Core takes seconds.
    from qwen_megatron.planning.comparison import compare, comparison_text

    compared = compare(plan.shown, plan.machine, args.rank, args.microbatches)
    print(json.dumps(compared, indent=2) if args.json else printable(comparison_text(compared)))
    return 0
