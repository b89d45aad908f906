"""`qwen-megatron pretrain`, `sft`, `reward`, `ppo`: checks a configuration completely, then trains."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from typing import Any

from data_tools.io.plain_text import printable
from qwen_megatron.cli.settings import add_settings
from qwen_megatron.config.load import split_settings
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.summary import summary
from qwen_megatron.errors import ConfigError, PlatformError
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.kinds.table import JOBS, job_words
from qwen_megatron.jobs.launcher import Launch, let_waiting_threads_sleep
from qwen_megatron.jobs.preflight import prepare_start
from qwen_megatron.libraries import silence_libraries

EPILOG = """\
A first Ctrl-C, like SIGTERM, lets the run finish its step, save and leave; a second one leaves at once.

exit status: 0 done, 1 the run failed, 2 the configuration is wrong (all problems are listed), 130 interrupted by Ctrl-C
"""

INTERRUPTED = 130


def add_parser(subparsers: Any) -> None:
    """Registers a command for each job."""
    for kind in JOBS.values():
        parser = subparsers.add_parser(
            kind.name,
            help=f"{kind.help}, or check a configuration with --dry-run",
            description=kind.description,
            usage="%(prog)s [CONFIG ...] [SECTION.KEY=VALUE ...] [--dry-run]",
            epilog=f"examples:\n{kind.examples}\n{EPILOG}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_settings(parser)
        parser.add_argument(
            "--dry-run", action="store_true", help="check the configuration, the corpora and the folders, and stop"
        )
        parser.set_defaults(run=run, job=kind.name)


def run(args: argparse.Namespace) -> int:
    """Runs the command on this process.

    Raises:
        ConfigError: with all problems.
        CheckpointError, DataError, PlatformError, TrainingError: from the run.
    """
    launch, kind = Launch.of_this_process(), JOBS[args.job]
    files, overrides = split_settings(args.settings)
    config, start = prepare_start(files, overrides, launch.world_size, kind=kind, with_sizes=launch.rank == 0)
    for line in kind.warnings(config) if launch.rank == 0 else ():
        print(printable(f"qwen-megatron: warning: {line}"), file=sys.stderr)
    if args.dry_run:
        if launch.rank == 0:
            lines = [summary(config), *data_lines(kind, config), f"start   {start}", *start.notes]
            print(printable("\n".join(lines)))
        return 0
    if config.world_size > 1 and launch.world_size is None:
        command = f"qwen-megatron launch {shlex.join([*job_words(kind), *args.settings])}"
        raise ConfigError(
            f"parallel.world_size={config.world_size}: needs that many processes, but this is one without a launcher; "
            f"start on one machine with: {command}"
        )
    silence_libraries()
    let_waiting_threads_sleep()
    try:
        # Only now: importing torch and Megatron-Core takes seconds on every rank.
        reason = kind.run(config)
    except BrokenPipeError as error:
        raise PlatformError(
            "standard output: whoever read it has gone; write it to a file (> run.log) and start again: the run goes "
            "on from its newest checkpoint"
        ) from error
    # A launcher would take any other status than 0 for a failure, and start the run again.
    return INTERRUPTED if reason == signal.SIGINT.name and launch.world_size is None else 0


def data_lines(kind: JobKind, config: ResolvedConfig) -> list[str]:
    """What the run takes of each corpus, with warnings about it."""
    lines, warnings = kind.data_lines(config)
    return [f"        {line}" for line in [*lines, *(f"warning: {warning}" for warning in warnings)]]
