"""Wires a pretraining run: the only place where data, model, optimizer, checkpoints and hooks meet."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from data_tools.lock import FileLock
from data_tools.plain_text import printable
from qwen_megatron.checkpoint.contents import config_sections
from qwen_megatron.checkpoint.hook import CheckpointHook
from qwen_megatron.checkpoint.manifest import restore_replaced, write_synced
from qwen_megatron.checkpoint.retention import Retention
from qwen_megatron.checkpoint.run_lock import run_lock
from qwen_megatron.checkpoint.save import Saver
from qwen_megatron.config.flops import flops_formula, utilization_formula
from qwen_megatron.config.logging import numbers_in
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.data.loader import Loader
from qwen_megatron.data.pretraining.dataset import open_dataset
from qwen_megatron.jobs.failure import retire_failure
from qwen_megatron.jobs.failure_report import FailureReport
from qwen_megatron.jobs.history import record_start
from qwen_megatron.jobs.launcher import Launch
from qwen_megatron.jobs.resume import restore
from qwen_megatron.jobs.watchdog import Watchdog
from qwen_megatron.parallel.groups import Groups, build_groups, leave, start_process_group
from qwen_megatron.parallel.meeting import Job, join_job
from qwen_megatron.platforms import Platform, get_platform
from qwen_megatron.train.engine import Engine, build_engine
from qwen_megatron.train.hooks.console import ConsoleHook
from qwen_megatron.train.hooks.evaluation import EvaluationHook
from qwen_megatron.train.hooks.leave import LeaveHook
from qwen_megatron.train.hooks.metrics import MetricsHook, TensorBoardHook
from qwen_megatron.train.hooks.profile import ProfileHook
from qwen_megatron.train.hooks.replicas import ReplicaHook
from qwen_megatron.train.hooks.straggler import StragglerHook
from qwen_megatron.train.hooks.wandb import WandbHook
from qwen_megatron.train.judge import Judge
from qwen_megatron.train.loop import train
from qwen_megatron.train.run import Hook, Run

log = logging.getLogger(__name__)


def pretrain(config: ResolvedConfig) -> None:
    """Runs a configuration on this rank, from the newest checkpoint where there is one.

    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    launch = Launch.of_this_process()
    configure_logging(launch)
    limit_threads(launch.local_world_size or config.world_size)
    platform = get_platform(config.parallel.platform)
    shims = platform.prepare()
    job = join_job(platform, config.parallel.start_timeout_seconds)
    report = FailureReport(Path(config.checkpoint.directory), job, launch.restarts)
    with Watchdog(job.store, job.rank, job.world_size, config.parallel, report.stuck) as watch:
        report.watch = watch
        groups: Groups | None = None
        try:
            groups = start_groups(config, platform, job)
            with contextlib.ExitStack() as held:
                lock = take_folder(config, held) if groups.rank == 0 else None
                # Only now does every rank know that the folder is this job's.
                dist.barrier()
                report.own_folder()
                if groups.rank == 0:
                    announce(config, platform.name, shims)
                run = build_run(config, build_engine(config, groups, platform), lock)
                if groups.rank == 0:
                    record_start(run)
                watch.follow(run)
                train(run)
            if groups.rank == 0 and run.stopping is not None:
                log.info("left after step %d: %s", run.state.iteration, run.stopping)
        except Exception as error:
            report.failed(error)
            raise
        finally:
            leave(groups)


def start_groups(config: ResolvedConfig, platform: Platform, job: Job) -> Groups:
    """The collectives of the layout."""
    parallel = config.parallel
    timeout = parallel.collective_timeout_seconds
    return build_groups(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        device=start_process_group(platform, timeout, job),
        timeout_seconds=timeout,
    )


def take_folder(config: ResolvedConfig, held: contextlib.ExitStack) -> FileLock:
    """Rank 0 locks the run's folder for this job, and puts in order what an earlier part left."""
    directory = Path(config.checkpoint.directory)
    directory.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context(run_lock(directory))
    retire_failure(directory)
    restore_replaced(directory)
    return lock


def build_run(config: ResolvedConfig, engine: Engine, lock: FileLock | None = None) -> Run:
    """Opens the data, restores the state and puts the hooks in order."""
    dataset = open_dataset(
        config.data.blend,
        seq_length=config.training.seq_length,
        seed=config.training.seed,
        eval_samples=config.data.eval_samples,
        vocab_size=config.model.vocab_size,
    )
    state = restore(config, engine, dataset)
    loader = Loader(
        dataset,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_rank=engine.groups.dp.rank(),
        data_parallel_size=engine.groups.dp.size(),
        num_workers=config.data.num_workers,
        microbatch_multiple=(
            engine.groups.pp.size() if config.parallel.virtual_pipeline_model_parallel_size is not None else 1
        ),
    )
    # Metrics before checkpoints: a checkpoint is never newer than the rows about it.
    hooks: list[Hook] = reporting_hooks(config)
    if config.data.eval_samples:
        hooks.append(EvaluationHook(config.training.eval_interval))
    # A sick state is not saved.
    hooks += [StragglerHook(config.logging.straggler_interval), ReplicaHook(config.logging.replica_check_interval)]
    hooks += [checkpoint_hook(config, lock), LeaveHook(seconds(config.training.exit_duration_minutes))]
    judge = Judge(max_skips=config.training.skip_nonfinite_steps, spike_sigmas=config.training.spike_sigmas)
    return Run(config=config, engine=engine, state=state, dataset=dataset, loader=loader, hooks=hooks, judge=judge)


def reporting_hooks(config: ResolvedConfig) -> list[Hook]:
    """The hooks that only tell what happens."""
    options = config.logging
    hooks: list[Hook] = []
    if options.profile_steps is not None:
        hooks.append(ProfileHook(numbers_in(options.profile_steps), numbers_in(options.profile_ranks)))
    hooks += [ConsoleHook(options.log_interval), MetricsHook()]
    if options.tensorboard:
        hooks.append(TensorBoardHook())
    if options.wandb_project is not None:
        hooks.append(WandbHook(options.wandb_project, options.wandb_mode, config_sections(config)))
    return hooks


def checkpoint_hook(config: ResolvedConfig, lock: FileLock | None) -> CheckpointHook:
    """Saving as `checkpoint.*` says."""
    options = config.checkpoint
    retention = Retention(options.keep_last, options.keep_every)
    saver = Saver(asynchronous=options.async_save, retention=retention, lock=lock)
    return CheckpointHook(saver, options.save_interval, seconds(options.save_interval_minutes))


def seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def announce(config: ResolvedConfig, platform_name: str, shims: list[str]) -> None:
    """Rank 0 says what runs, and keeps the resolved configuration in the run's folder."""
    directory = Path(config.checkpoint.directory)
    resolved = OmegaConf.to_yaml(OmegaConf.create(config_sections(config)))
    write_synced(directory / "config.yaml", resolved.encode())
    parallel = config.parallel
    log.info(
        "%s parameters on %s: TP %d x PP %d x CP %d x DP %d, %s; a step: %d micro-batches of %d x %d tokens a replica",
        f"{config.num_parameters:,}",
        platform_name,
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
        flops_formula(config.model, config.training.seq_length),
        utilization_formula(config.logging.peak_tflops_per_rank, config.world_size),
    )
    if shims:
        write_synced(directory / "shims.txt", "".join(line + "\n" for line in shims).encode())
        log.info("%d names of Megatron-Core redirected for this platform: see %s", len(shims), directory / "shims.txt")


class PrintableFormatter(logging.Formatter):
    """Messages quote files, which may hold what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(launch: Launch) -> None:
    """One short line per message, rank 0 only below warnings."""
    logging.basicConfig(level=logging.INFO if launch.rank == 0 else logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.getLogger("megatron").setLevel(logging.ERROR)


def limit_threads(local_world_size: int) -> None:
    """Threads = cores / ranks on this machine: more of them spin against each other."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // local_world_size))
