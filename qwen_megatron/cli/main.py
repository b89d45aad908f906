"""The command `qwen-megatron`: picks the subcommand, turns errors into messages and exit statuses.

A subcommand is a module of this package with `add_parser(subparsers)`, which calls `set_defaults(run=run)`, and
`run(args) -> int`. Its top level imports nothing heavy: `--help` and configuration errors need neither torch nor
Megatron-Core.

Exit statuses: 0 done; 1 a run failed; 2 refused: wrong usage or configuration, an output that exists; 130 interrupted.
They and the messages are made in one place for both programs, `data_tools.commands.outcome`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import cast

from data_tools.commands.outcome import EXIT_REFUSED, exit_status
from data_tools.commands.parser import CommandParser
from data_tools.commands.renamed import with_current_name
from data_tools.commands.shared_options import add_shared_options, apply_loudness, check_command, complete
from data_tools.io.plain_text import printable
from qwen_megatron.cli.settings import setting_meant
from qwen_megatron.errors import (
    CheckpointError,
    ConfigError,
    PlatformError,
    TrainingError,
)
from qwen_megatron.jobs.kinds.table import JOBS
from qwen_megatron.jobs.launcher import Launch, MachineError
from qwen_megatron.libraries import without_compiler

# How long a rank without a message waits for the one that has it.
PATIENCE_SECONDS = 5.0

# Modules of this package; `train` registers a command for each job, the others one of their own name.
MODULES = (
    "launch",
    "train",
    "recipes",
    "show_config",
    "plan",
    "check_parity",
    "trace",
    "report",
    "convert",
    "logits",
    "generate",
    "perplexity",
    "rewards",
    "evaluate",
    "chat",
    "serve",
)

# Old name of a command -> its name.
RENAMED = {"certify": "check-parity"}

EPILOG = """examples:
  qwen-megatron show-config model.preset=qwen-7b parallel.tensor_model_parallel_size=2
  qwen-megatron pretrain examples/qwen-7b.yaml data.blend=[data/corpus] checkpoint.directory=runs/7b --dry-run
  qwen-megatron launch recipe:demo data.blend=[demo/corpus] training.train_iters=20

`qwen-megatron COMMAND --help` tells more; docs/configuration.md lists every setting. To complete commands and settings
in the shell, install argcomplete and put this into ~/.bashrc:
  eval "$(register-python-argcomplete qwen-megatron qwen-data)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    Returns:
        The exit status.
    """
    without_compiler(os.environ)
    arguments = sys.argv[1:] if argv is None else argv
    return exit_status("qwen-megatron", arguments, run, (CheckpointError, PlatformError, TrainingError))


def run(argv: Sequence[str]) -> int:
    """Runs a subcommand; of a wrong configuration one process of a job tells.

    Raises:
        CheckpointError, DataError, PlatformError, TrainingError, OSError: from the subcommand.
    """
    args = parse(build_parser(), with_current_name(argv, RENAMED))
    try:
        apply_loudness(args)
        return cast(int, args.run(args))
    except ConfigError as error:
        report(error, os.environ)
        return EXIT_REFUSED


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = CommandParser(
        prog="qwen-megatron",
        description="Trains Qwen language models on Megatron-Core's parallelism, converts, runs and evaluates them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in MODULES:
        importlib.import_module(f"qwen_megatron.cli.{name}").add_parser(subparsers)
    add_shared_options(parser)
    return parser


def command_names() -> list[str]:
    """All commands."""
    return [name for module in MODULES for name in (JOBS if module == "train" else [module.replace("_", "-")])]


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses; says which setting may be meant by an option that there is none of."""
    complete(parser)
    check_command(parser, argv, command_names())
    args, rest = parser.parse_known_args(argv)
    if rest:
        meant = [advice for text in rest if "settings" in args and (advice := setting_meant(text, argv))]
        parser.error("; ".join([f"unrecognized arguments: {' '.join(rest)}", *meant]))
    return args


def report(error: ConfigError, environment: Mapping[str, str]) -> None:
    """Prints a configuration's problems once for the whole job, and a machine's own once for each machine."""
    try:
        launch = Launch.from_environment(environment)
    except ConfigError:
        launch = Launch(rank=0, local_rank=0, world_size=None)
    if launch.rank != 0 and not (isinstance(error, MachineError) and launch.local_rank == 0):
        # torchrun ends all processes as soon as one has ended: the one that speaks must not be cut off.
        time.sleep(PATIENCE_SECONDS)
        return
    where = f" on {socket.gethostname()}" if launch.rank != 0 else ""
    count = len(error.problems)
    lines = [f"qwen-megatron: {count} {'problem' if count == 1 else 'problems'} in the configuration{where}:"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(error.problems, start=1)]
    print(printable("\n".join(lines)), file=sys.stderr, flush=True)
