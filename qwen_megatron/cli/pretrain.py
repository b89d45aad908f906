"""`qwen-megatron pretrain`: checks a configuration completely, then trains."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from qwen_megatron.cli.quiet import silence_libraries
from qwen_megatron.cli.settings import add_settings, split_settings
from qwen_megatron.config.summary import summary
from qwen_megatron.errors import ConfigError, PlatformError
from qwen_megatron.jobs.launcher import Launch
from qwen_megatron.jobs.preflight import prepare_config

EPILOG = """examples:
  check without training:
    qwen-megatron pretrain examples/demo.yaml data.blend=[demo/corpus] --dry-run
  one process:
    qwen-megatron pretrain model.preset=tiny training.global_batch_size=4 training.train_iters=20 \\
        data.blend=[demo/corpus] checkpoint.directory=runs/tiny
  eight processes, two corpora at 7 : 3:
    torchrun --nproc-per-node 8 -m qwen_megatron pretrain examples/demo.yaml \\
        'data.blend={data/web: 0.7, data/code: 0.3}' training.train_iters=20

exit status: 0 done, 1 the run failed, 2 the configuration is wrong (all problems are listed), 130 interrupted
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "pretrain",
        help="train a model, or check a configuration with --dry-run",
        description="Trains a model. Starts from the newest checkpoint in checkpoint.directory if there is one.",
        usage="%(prog)s [CONFIG.yaml] [SECTION.KEY=VALUE ...] [--dry-run]",
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
    path, overrides = split_settings(args.settings)
    config = prepare_config(path, overrides, launch.world_size, with_files=True)
    if args.dry_run:
        if launch.rank == 0:
            print(summary(config))
        return 0
    if config.world_size > 1 and launch.world_size is None:
        command = f"torchrun --nproc-per-node {config.world_size} -m qwen_megatron pretrain {shlex.join(args.settings)}"
        raise ConfigError(
            f"parallel.world_size={config.world_size}: needs that many processes, but this is one without a launcher; "
            f"start on one machine with: {command}"
        )
    silence_libraries()
    # Only now: importing torch and Megatron-Core takes seconds on every rank.
    from qwen_megatron.jobs.pretrain import pretrain

    try:
        pretrain(config)
    except BrokenPipeError as error:
        raise PlatformError(
            "standard output: whoever read it has gone; write it to a file (> run.log) and start again: the run goes "
            "on from its newest checkpoint"
        ) from error
    return 0
