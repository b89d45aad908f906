"""What stands around any job: rendezvous, watchdog, lock of the folder, failure record, logging, threads."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data_tools.io.lock import FileLock
from data_tools.io.plain_text import printable
from qwen_megatron.checkpoint.manifest import restore_replaced, write_synced
from qwen_megatron.checkpoint.run_lock import run_lock
from qwen_megatron.config.arithmetic.flops import flops_formula, utilization_formula
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.summary import settings_as_yaml
from qwen_megatron.jobs.failure import read_failure, retire_failure, settings_digest
from qwen_megatron.jobs.failure_report import FailureReport
from qwen_megatron.jobs.launcher import Launch
from qwen_megatron.jobs.watchdog import Watchdog
from qwen_megatron.parallel.groups import Groups, build_groups, destroy_groups, start_process_group
from qwen_megatron.parallel.rendezvous import Member, join_job
from qwen_megatron.platforms import Platform, get_platform
from qwen_megatron.train.loop import train
from qwen_megatron.train.run import Run
from qwen_megatron.train.step_timers import StepTimers

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a job is given.

    Attributes:
        config: Resolved configuration.
        directory: The run's folder, locked for this job.
        groups: Layout.
        platform: Machine.
        timers: Clock of this rank; the watchdog looks at it.
        shims: A line for each name of a library that was redirected.
        watchdog: Told where the run stands.
        report: Told of an error before anything is closed.
        lock: Of the folder, on rank 0: nothing is saved where it is lost.
    """

    config: ResolvedConfig
    directory: Path
    groups: Groups
    platform: Platform
    timers: StepTimers
    shims: list[str]
    watchdog: Watchdog
    report: FailureReport
    lock: FileLock | None

    def train(self, run: Run) -> None:
        """Trains a run that has passed all checks; from here on its folder is written to.

        Raises:
            DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
        """
        if run.is_main:
            # What would refuse the same settings again stands until a start has passed all checks.
            retire_failure(self.directory)
            self.announce()
        self.watchdog.follow(run)
        train(run, on_error=self.report.failed)
        if run.is_main and run.stopping is not None:
            log.info("left after step %d: %s", run.state.iteration, run.stopping)

    def announce(self) -> None:
        """Says what runs, and keeps the resolved configuration in the run's folder."""
        config, parallel = self.config, self.config.parallel
        write_synced(self.directory / "config.yaml", settings_as_yaml(config).encode())
        log.info(
            "%s parameters on %s: TP %d x PP %d x CP %d x DP %d, %s; "
            "a step: %d micro-batches of %d x %d tokens a replica",
            f"{config.num_parameters:,}",
            self.platform.name,
            parallel.tensor_model_parallel_size,
            parallel.pipeline_model_parallel_size,
            parallel.context_parallel_size,
            config.data_parallel_size,
            config.training.precision,
            config.num_microbatches,
            config.training.micro_batch_size,
            config.training.seq_length,
        )
        log.info(
            "%s; %s",
            flops_formula(config.model, config.training.seq_length, has_scalar_head=config.shape.has_scalar_head),
            utilization_formula(config.logging.peak_tflops_per_rank, config.world_size),
        )
        if self.shims:
            path = self.directory / "shims.txt"
            write_synced(path, "".join(line + "\n" for line in self.shims).encode())
            log.info("%d names of Megatron-Core and torch redirected for this platform: see %s", len(self.shims), path)


@contextlib.contextmanager
def session(config: ResolvedConfig) -> Iterator[Session]:
    """Brings this rank into the job, and out of it, whatever happens in between.

    An error inside is reported in one line and recorded; no rank waits for another then.

    Raises:
        PlatformError: if this machine cannot run the configuration, or a rank does not come.
        CheckpointError: if another job is training in the folder.
    """
    launch = Launch.of_this_process()
    configure_logging(launch)
    torch.set_num_threads(num_threads(config, launch))
    platform = get_platform(config.parallel.platform, config.parallel.backend)
    for line in platform.configure(
        tensor_parallel=config.parallel.tensor_model_parallel_size > 1,
        deterministic=config.training.deterministic,
        cuda_graphs=config.parallel.cuda_graph_impl != "none",
    ):
        log.info("set: %s", line)
    shims = platform.prepare()
    member = join_job(platform, config.parallel.start_timeout_seconds)
    directory = Path(config.checkpoint.directory)
    report = FailureReport(directory, member, launch.restarts, settings_digest(config))
    with Watchdog(
        member.store, member.rank, member.world_size, config.parallel, report.stuck, launch.neighbours
    ) as watchdog:
        report.watchdog = watchdog
        try:
            groups = layout_of(config, platform, member)
            with contextlib.ExitStack() as held:
                lock = take_folder(directory, held) if groups.rank == 0 else None
                # Only now does every rank know that the folder is this job's.
                dist.barrier()
                report.own_folder()
                yield Session(
                    config=config,
                    directory=directory,
                    groups=groups,
                    platform=platform,
                    timers=StepTimers(),
                    shims=shims,
                    watchdog=watchdog,
                    report=report,
                    lock=lock,
                )
        except Exception as error:
            report.failed(error)
            raise
        finally:
            destroy_groups()


def layout_of(config: ResolvedConfig, platform: Platform, member: Member | None = None) -> Groups:
    """The collectives of the configured layout; `member` as for `start_process_group`."""
    parallel = config.parallel
    timeout = parallel.collective_timeout_seconds
    return build_groups(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        device=start_process_group(platform, timeout, member),
        timeout_seconds=timeout,
    )


def take_folder(directory: Path, held: contextlib.ExitStack) -> FileLock:
    """Rank 0 locks the run's folder for this job, and puts in order what an earlier part left."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context(run_lock(directory))
    failure = read_failure(directory)
    if failure is None or failure.restart_helps:
        retire_failure(directory)
    restore_replaced(directory)
    return lock


class PrintableFormatter(logging.Formatter):
    """Messages quote files, which may hold what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(launch: Launch) -> None:
    """One short line per message, rank 0 only below warnings."""
    level = logging.INFO if launch.rank == 0 else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.getLogger("megatron").setLevel(logging.ERROR)


def num_threads(config: ResolvedConfig, launch: Launch) -> int:
    """Threads of this process: as configured, as the user's environment says, or its share of the machine's cores."""
    share = len(os.sched_getaffinity(0)) // (launch.local_world_size or config.world_size)
    return config.parallel.threads or launch.threads or max(1, share)
