"""The hooks of a run, as its configuration asks for them, in the order they are called."""

from __future__ import annotations

from data_tools.io.lock import FileLock
from qwen_megatron.checkpoint.hook import CheckpointHook
from qwen_megatron.checkpoint.retention import Retention
from qwen_megatron.checkpoint.save import Saver
from qwen_megatron.checkpoint.state import config_sections
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.sections.logging import numbers_in
from qwen_megatron.jobs.history import HistoryHook
from qwen_megatron.train.hooks.console import ConsoleHook
from qwen_megatron.train.hooks.evaluation import EvaluationHook
from qwen_megatron.train.hooks.metrics import MetricsHook, TensorBoardHook
from qwen_megatron.train.hooks.preemption import PreemptionHook
from qwen_megatron.train.hooks.profile import ProfileHook
from qwen_megatron.train.hooks.straggler import StragglerHook
from qwen_megatron.train.hooks.wandb import WandbHook
from qwen_megatron.train.hooks.weight_consistency import WeightConsistencyHook
from qwen_megatron.train.run import Hook


def configured_hooks(config: ResolvedConfig, lock: FileLock | None = None) -> list[Hook]:
    """Those of any job. Metrics before checkpoints: a checkpoint is never newer than the rows about it.

    Args:
        config: Resolved configuration.
        lock: Of the run's folder, on rank 0: nothing is saved where it is lost.
    """
    hooks = reporting_hooks(config)
    if config.data.eval_samples or config.data.eval_blend:
        hooks.append(EvaluationHook(config.training.eval_interval))
    # A sick state is not saved.
    hooks += [
        StragglerHook(config.logging.straggler_interval),
        WeightConsistencyHook(config.logging.replica_check_interval),
    ]
    return [*hooks, checkpoint_hook(config, lock), PreemptionHook(seconds(config.training.exit_duration_minutes))]


def reporting_hooks(config: ResolvedConfig) -> list[Hook]:
    """The hooks that only tell what happens."""
    options = config.logging
    hooks: list[Hook] = []
    if options.profile_steps is not None:
        hooks.append(ProfileHook(numbers_in(options.profile_steps), numbers_in(options.profile_ranks)))
    hooks += [ConsoleHook(options.log_interval), MetricsHook(), HistoryHook()]
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
    """Minutes as seconds; None stays None."""
    return None if minutes is None else 60 * minutes
