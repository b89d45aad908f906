"""`qwen-megatron pretrain`: checks a configuration completely, then trains."""

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
from qwen_megatron.data.pretraining.tokenizers import foreign_corpora
from qwen_megatron.errors import ConfigError, PlatformError
from qwen_megatron.jobs.blend import open_blend
from qwen_megatron.jobs.held_out import data_plan
from qwen_megatron.jobs.launcher import Launch, let_waiting_threads_sleep
from qwen_megatron.jobs.preflight import prepare_start
from qwen_megatron.libraries import silence_libraries

EPILOG = """examples:
  check without training:
    qwen-megatron pretrain examples/demo.yaml data.blend=[demo/corpus] --dry-run
  one process:
    qwen-megatron pretrain model.preset=tiny training.global_batch_size=4 training.train_iters=20 \\
        data.blend=[demo/corpus] checkpoint.directory=runs/tiny
  eight processes, two corpora at 7 : 3:
    qwen-megatron launch examples/demo.yaml \\
        'data.blend={data/web: 0.7, data/code: 0.3}' training.train_iters=20

A first Ctrl-C, like SIGTERM, lets the run finish its step, save and leave; a second one leaves at once.

exit status: 0 done, 1 the run failed, 2 the configuration is wrong (all problems are listed), 130 interrupted by Ctrl-C
"""

INTERRUPTED = 130


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a model, or check a configuration with --dry-run",
        description="Trains a model. Starts from the newest checkpoint in checkpoint.directory if there is one.",
        usage="%(prog)s [CONFIG ...] [SECTION.KEY=VALUE ...] [--dry-run]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check the configuration, the corpora and the folders, and stop"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command on this process.

    Raises:
        ConfigError: with all problems.
        CheckpointError, DataError, PlatformError, TrainingError: from the run.
    """
    launch = Launch.of_this_process()
    files, overrides = split_settings(args.settings)
    config, start = prepare_start(files, overrides, launch.world_size, with_sizes=launch.rank == 0)
    for line in foreign_corpora(config.data.blend, config.model.vocab_size) if launch.rank == 0 else ():
        print(printable(f"qwen-megatron: warning: {line}"), file=sys.stderr)
    if args.dry_run:
        if launch.rank == 0:
            lines = [summary(config), *data_lines(config), f"start   {start}", *start.notes]
            print(printable("\n".join(lines)))
        return 0
    if config.world_size > 1 and launch.world_size is None:
        command = f"qwen-megatron launch {shlex.join(args.settings)}"
        raise ConfigError(
            f"parallel.world_size={config.world_size}: needs that many processes, but this is one without a launcher; "
            f"start on one machine with: {command}"
        )
    silence_libraries()
    let_waiting_threads_sleep()
    # Only now: importing torch and Megatron-Core takes seconds on every rank.
    from qwen_megatron.jobs.pretrain import pretrain

    try:
        reason = pretrain(config)
    except BrokenPipeError as error:
        raise PlatformError(
            "standard output: whoever read it has gone; write it to a file (> run.log) and start again: the run goes "
            "on from its newest checkpoint"
        ) from error
    # A launcher would take any other status than 0 for a failure, and start the run again.
    return INTERRUPTED if reason == signal.SIGINT.name and launch.world_size is None else 0


def data_lines(config: ResolvedConfig) -> list[str]:
    """What the run takes of each corpus, with a warning of too many epochs."""
    lines, warnings = data_plan(config, open_blend(config))
    return [f"        {line}" for line in [*lines, *(f"warning: {warning}" for warning in warnings)]]
