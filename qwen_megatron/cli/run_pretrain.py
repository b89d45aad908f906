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

from qwen_megatron.checkpoint.contents import plan_sections
from qwen_megatron.checkpoint.hook import CheckpointHook
from qwen_megatron.checkpoint.manifest import restore_replaced, write_synced
from qwen_megatron.checkpoint.retention import Retention
from qwen_megatron.checkpoint.run_lock import run_lock
from qwen_megatron.checkpoint.save import Saver
from qwen_megatron.cli.failure_report import FailureReport
from qwen_megatron.cli.launch import restart_count
from qwen_megatron.cli.restore import restore
from qwen_megatron.cli.starts import record_start
from qwen_megatron.config.flops import flops_formula, utilization_formula
from qwen_megatron.config.logging import numbers_in
from qwen_megatron.config.resolve import Plan
from qwen_megatron.data.dataset import open_dataset
from qwen_megatron.data.loader import Loader
from qwen_megatron.parallel.groups import Groups, build_groups, leave, start_process_group
from qwen_megatron.parallel.meeting import Job, join_job
from qwen_megatron.platforms import Platform, get_platform
from qwen_megatron.train.engine import Engine, build_engine
from qwen_megatron.train.failure import retire_failure
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
from qwen_megatron.train.watch import Watch

log = logging.getLogger(__name__)


def pretrain(plan: Plan) -> None:
    """Runs the plan on this rank, from the newest checkpoint where there is one.

    Raises:
        DataError, CheckpointError, PlatformError, TrainingError: see their messages; nothing is left half-written.
    """
    configure_logging()
    limit_threads(plan.world_size)
    platform = get_platform(plan.parallel.platform)
    shims = platform.prepare()
    job = join_job(platform, plan.parallel.start_timeout_seconds)
    report = FailureReport(Path(plan.checkpoint.directory), job, restart_count(os.environ))
    with Watch(job.store, job.rank, job.world_size, plan.parallel, report.stuck) as watch:
        report.watch = watch
        groups: Groups | None = None
        try:
            groups = start_groups(plan, platform, job)
            with contextlib.ExitStack() as held:
                if groups.rank == 0:
                    take_folder(plan, held)
                # Only now does every rank know that the folder is this job's.
                dist.barrier()
                report.owns_folder = True
                if groups.rank == 0:
                    announce(plan, platform.name, shims)
                run = build_run(plan, build_engine(plan, groups, platform))
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


def start_groups(plan: Plan, platform: Platform, job: Job) -> Groups:
    """The collectives of the plan's layout."""
    parallel = plan.parallel
    timeout = parallel.collective_timeout_seconds
    return build_groups(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        device=start_process_group(platform, timeout, job),
        timeout_seconds=timeout,
    )


def take_folder(plan: Plan, held: contextlib.ExitStack) -> None:
    """Rank 0 locks the run's folder for this job, and puts in order what an earlier part left."""
    directory = Path(plan.checkpoint.directory)
    directory.mkdir(parents=True, exist_ok=True)
    held.enter_context(run_lock(directory))
    retire_failure(directory)
    restore_replaced(directory)


def build_run(plan: Plan, engine: Engine) -> Run:
    """Opens the data, restores the state and puts the hooks in order."""
    dataset = open_dataset(
        plan.data.blend,
        seq_length=plan.training.seq_length,
        seed=plan.training.seed,
        eval_samples=plan.data.eval_samples,
        vocab_size=plan.model.vocab_size,
    )
    state = restore(plan, engine, dataset)
    loader = Loader(
        dataset,
        micro_batch_size=plan.training.micro_batch_size,
        data_parallel_rank=engine.groups.dp.rank(),
        data_parallel_size=engine.groups.dp.size(),
        num_workers=plan.data.num_workers,
        microbatch_multiple=(
            engine.groups.pp.size() if plan.parallel.virtual_pipeline_model_parallel_size is not None else 1
        ),
    )
    # Metrics before checkpoints: a checkpoint is never newer than the rows about it.
    hooks: list[Hook] = reporting_hooks(plan)
    if plan.data.eval_samples:
        hooks.append(EvaluationHook(plan.training.eval_interval))
    # A sick state is not saved.
    hooks += [StragglerHook(plan.logging.straggler_interval), ReplicaHook(plan.logging.replica_check_interval)]
    hooks += [checkpoint_hook(plan), LeaveHook(seconds(plan.training.exit_duration_minutes))]
    judge = Judge(max_skips=plan.training.skip_nonfinite_steps, spike_sigmas=plan.training.spike_sigmas)
    return Run(plan=plan, engine=engine, state=state, dataset=dataset, loader=loader, hooks=hooks, judge=judge)


def reporting_hooks(plan: Plan) -> list[Hook]:
    """The hooks that only tell what happens."""
    options = plan.logging
    hooks: list[Hook] = []
    if options.profile_steps is not None:
        hooks.append(ProfileHook(numbers_in(options.profile_steps), numbers_in(options.profile_ranks)))
    hooks += [ConsoleHook(options.log_interval), MetricsHook()]
    if options.tensorboard:
        hooks.append(TensorBoardHook())
    if options.wandb_project is not None:
        hooks.append(WandbHook(options.wandb_project, options.wandb_mode, plan_sections(plan)))
    return hooks


def checkpoint_hook(plan: Plan) -> CheckpointHook:
    """Saving as `checkpoint.*` says."""
    options = plan.checkpoint
    saver = Saver(asynchronous=options.async_save, retention=Retention(options.keep_last, options.keep_every))
    return CheckpointHook(saver, options.save_interval, seconds(options.save_interval_minutes))


def seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def announce(plan: Plan, platform_name: str, shims: list[str]) -> None:
    """Rank 0 says what runs, and keeps the resolved configuration in the run's folder."""
    directory = Path(plan.checkpoint.directory)
    resolved = OmegaConf.to_yaml(OmegaConf.create(plan_sections(plan)))
    write_synced(directory / "config.yaml", resolved.encode())
    parallel = plan.parallel
    log.info(
        "%s parameters on %s: TP %d x PP %d x CP %d x DP %d, %s; a step: %d micro-batches of %d x %d tokens a replica",
        f"{plan.num_parameters:,}",
        platform_name,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
        plan.data_parallel_size,
        plan.training.precision,
        plan.num_microbatches,
        plan.training.micro_batch_size,
        plan.training.seq_length,
    )
    log.info(
        "%s; %s",
        flops_formula(plan.model, plan.training.seq_length),
        utilization_formula(plan.logging.peak_tflops_per_rank, plan.world_size),
    )
    if shims:
        write_synced(directory / "shims.txt", "".join(line + "\n" for line in shims).encode())
        log.info("%d names of Megatron-Core redirected for this platform: see %s", len(shims), directory / "shims.txt")


def configure_logging() -> None:
    """One short line per message, rank 0 only below warnings."""
    main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("megatron").setLevel(logging.ERROR)


def limit_threads(world_size: int) -> None:
    """Threads = cores / ranks on this machine: more of them spin against each other."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // local))
