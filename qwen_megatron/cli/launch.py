"""`qwen-megatron launch`: starts the processes of a run itself, on this machine or through Slurm."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from typing import Any

from qwen_megatron.cli import train
from qwen_megatron.cli.settings import add_settings
from qwen_megatron.config.load import split_settings
from qwen_megatron.errors import ConfigError
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.kinds.table import job_words, split_job
from qwen_megatron.jobs.preflight import prepare_config, prepare_start
from qwen_megatron.jobs.slurm import slurm_script
from qwen_megatron.libraries import first_imports

EPILOG = """examples:
  eight processes on this machine, as the recipe says:
    qwen-megatron launch recipe:demo data.blend=[demo/corpus] checkpoint.directory=runs/demo
  two of them:
    qwen-megatron launch recipe:demo --processes 2 parallel.pipeline_model_parallel_size=1 data.blend=[demo/corpus] \\
        checkpoint.directory=runs/two
  another job than pretraining: sft, reward or ppo before the recipe:
    qwen-megatron launch sft recipe:sft-7b data.blend=[data/dialogues] checkpoint.init_from=exports/7b
  a Slurm script for four nodes of eight GPUs; the second line submits it:
    qwen-megatron launch recipe:qwen-14b data.blend=[/shared/web] checkpoint.directory=/shared/14b --nodes 4
    qwen-megatron launch recipe:qwen-14b data.blend=[/shared/web] checkpoint.directory=/shared/14b --nodes 4 --submit

The run's folder says how far it came: the same command again goes on from there.

exit status: 0 done, 1 a process failed, 2 the configuration is wrong (nothing was started), 130 interrupted
"""


def add_parser(subparsers: Any) -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "launch",
        help="start all processes of a run, on this machine or through Slurm",
        description="Starts parallel.world_size processes of a job, `pretrain` where none is named, on this machine, "
        "where nothing listens beyond it; with --nodes prints a Slurm script instead. The configuration is checked "
        "first.",
        usage="%(prog)s [JOB] [CONFIG ...] [SECTION.KEY=VALUE ...] [--processes N] [--nodes N [--submit]]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings(parser)
    parser.add_argument("--processes", type=int, metavar="N", help="processes on each machine (parallel.world_size)")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="starts after a failure (default: 0)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines; more than one: for Slurm")
    parser.add_argument("--submit", action="store_true", help="give the Slurm script to sbatch instead of printing it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ConfigError: with all problems; nothing is started then.
    """
    for name in ("processes", "nodes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    if args.max_restarts < 0:
        raise ConfigError(f"--max-restarts {args.max_restarts}: must be at least 0")
    kind, given = split_job(args.settings)
    if args.nodes > 1:
        return through_slurm(kind, given, args)
    if args.submit:
        raise ConfigError("--submit: is for several machines; give --nodes")
    settings = given if args.processes is None else [*given, f"parallel.world_size={args.processes}"]
    files, overrides = split_settings(settings)
    config, _ = prepare_start(files, overrides, None, kind=kind)
    if config.world_size == 1:
        return train.run(argparse.Namespace(job=kind.name, settings=settings, dry_run=False))
    return on_this_machine(kind, settings, config.world_size, args.max_restarts)


def on_this_machine(kind: JobKind, settings: list[str], processes: int, max_restarts: int) -> int:
    """Starts the processes and waits for them; the exit status."""
    # torchrun announces its default of 1 on every start; the engine sets cores / processes itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Only now: importing torch takes seconds.
    with first_imports():
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        from qwen_megatron.parallel import loopback

    options = ["--nproc-per-node", str(processes), "--max-restarts", str(max_restarts)]
    try:
        loopback.main([*options, "-m", "qwen_megatron", kind.name, *settings])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(
            f"qwen-megatron: rank {rank} ended with status {failure.exitcode}; what it said stands above",
            file=sys.stderr,
        )
        return 2 if failure.exitcode == 2 else 1
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 1
    return 0


def through_slurm(kind: JobKind, given: list[str], args: argparse.Namespace) -> int:
    """Prints the script, or gives it to sbatch.

    Raises:
        ConfigError: with all problems, or if sbatch is not there or refuses.
    """
    if args.max_restarts:
        raise ConfigError(
            "--max-restarts: a Slurm job is requeued by the script; set MAX_RESTARTS to restart inside it"
        )
    per_node = args.processes or 8
    settings = [text for text in given if not text.startswith("parallel.world_size=")]
    files, overrides = split_settings([*settings, f"parallel.world_size={args.nodes * per_node}"])
    # Corpora and folders may be seen by the nodes alone; the script checks them there.
    prepare_config(files, overrides, None, kind=kind)
    settings = [*job_words(kind), *settings]
    script = slurm_script(settings, nodes=args.nodes, processes_per_node=per_node)
    if not args.submit:
        print(script, end="")
        return 0
    try:
        return subprocess.run(["sbatch"], input=script, text=True, check=False).returncode and 1
    except FileNotFoundError as error:
        again = shlex.join(["qwen-megatron", "launch", *settings, "--nodes", str(args.nodes)])
        raise ConfigError(f"--submit: there is no sbatch here; print the script with: {again}") from error
