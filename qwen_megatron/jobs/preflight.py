"""Everything that can be wrong with a run before torch is imported: settings, corpora, folders."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data_tools.settings.problems import Problems
from data_tools.settings.words import closest
from qwen_megatron.config.load import Files, read_config
from qwen_megatron.config.resolve import ResolvedConfig, examine, resolved_config
from qwen_megatron.config.schema import Settings
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.logging import LoggingConfig
from qwen_megatron.errors import CheckpointError, ConfigError
from qwen_megatron.jobs.architecture import read_source, with_architecture
from qwen_megatron.jobs.failure import refusal, settings_digest
from qwen_megatron.jobs.kinds.base import JobKind
from qwen_megatron.jobs.kinds.table import PRETRAIN
from qwen_megatron.jobs.launcher import MachineError
from qwen_megatron.jobs.start import Start, planned_start

# Of every usual file system.
LONGEST_NAME_BYTES = 255


def prepare_config(
    files: Files, overrides: Sequence[str], world_size: int | None, *, kind: JobKind = PRETRAIN
) -> ResolvedConfig:
    """Loads, resolves and checks settings alone, everything that is wrong at once.

    Args:
        files: YAML files, as for `load_config`.
        overrides: `section.key=value` texts.
        world_size: Processes a launcher started; None if there is none.
        kind: Of the job.
    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    settings, _ = with_source(read_config(files, overrides, problems), problems)
    sections = examine(settings, world_size, problems)
    kind.check_settings(sections, problems)
    if problems.messages:
        raise ConfigError(problems.messages)
    return resolved_config(sections, kind.shape)


def prepare_start(
    files: Files,
    overrides: Sequence[str],
    world_size: int | None,
    *,
    kind: JobKind = PRETRAIN,
    with_sizes: bool = True,
) -> tuple[ResolvedConfig, Start]:
    """Loads, resolves and checks a configuration and what a start needs besides: corpora, folders, checkpoints.

    Args:
        files, overrides, world_size, kind: As of `prepare_config`.
        with_sizes: As of `planned_start`.
    Returns:
        The configuration, and what a start with it would do.
    Raises:
        ConfigError: with every problem; a MachineError if only files are wrong.
    """
    problems = Problems()
    settings, unread = with_source(read_config(files, overrides, problems), problems)
    sections = examine(settings, world_size, problems)
    kind.check_settings(sections, problems)
    paths = unread + check_paths(sections.checkpoint, problems)
    corpora = kind.check_data(sections, problems)
    found = corpora + paths + check_packages(sections.logging)
    if problems.messages:
        raise ConfigError(problems.messages + found)
    config = resolved_config(sections, kind.shape)
    if config.training.train_epochs is not None and not corpora:
        config = with_steps_of_epochs(settings, config, world_size, kind)
    if not paths:
        found += filter(None, [refusal(Path(config.checkpoint.directory), settings_digest(config))])
        try:
            start = planned_start(
                config, None if corpora else kind.sources(config), heads=kind.heads, with_sizes=with_sizes
            )
        except CheckpointError as error:
            raise ConfigError([str(error), *found]) from error
    if found:
        raise MachineError(found)
    return config, start


def with_steps_of_epochs(
    settings: Settings, config: ResolvedConfig, world_size: int | None, kind: JobKind
) -> ResolvedConfig:
    """The configuration with `training.train_epochs` as a number of steps, which is what is recorded and compared.

    Raises:
        ConfigError: if that number breaks a rule.
    """
    epochs = config.training.train_epochs or 1
    steps = math.ceil(epochs * kind.epoch_samples(config) / config.training.global_batch_size)
    training = {**settings["training"], "train_epochs": None, "train_iters": steps}
    problems = Problems()
    sections = examine({**settings, "training": training}, world_size, problems)
    if problems.messages:
        raise ConfigError([f"training.train_epochs={epochs}, {steps} steps: {text}" for text in problems.messages])
    return resolved_config(sections, kind.shape)


def with_source(settings: Settings, problems: Problems) -> tuple[Settings, list[str]]:
    """The settings with what `checkpoint.init_from` says of its model, and what keeps it from being read."""
    source = settings["checkpoint"].get("init_from")
    if source is None or not problems.usable("checkpoint.init_from") or not os.path.isdir(source):
        return settings, []
    try:
        return with_architecture(settings, read_source(Path(source))), []
    except CheckpointError as error:
        return settings, [f"checkpoint.init_from={source}: {error}"]


def check_paths(checkpoint: CheckpointConfig, problems: Problems) -> list[str]:
    """What is wrong with the folders a run reads from and writes to."""
    found = []
    if problems.usable("checkpoint.directory"):
        found += check_directory(checkpoint.directory)
    sources = {"load": checkpoint.load, "init_from": checkpoint.init_from}
    words = {"load": ("auto", "none"), "init_from": ("null",)}
    for name, source in sources.items():
        if source is None or source in words[name] or not problems.usable(f"checkpoint.{name}"):
            continue
        if not os.path.isdir(source):
            looks_like_word = "/" not in source and source.lower() in ("auto", "none", "null", "latest")
            advice = f"use {closest(source, words[name])}" if looks_like_word else "name a checkpoint's folder"
            found.append(f"checkpoint.{name}={source}: no such folder; {advice}")
    return found


def check_packages(logging: LoggingConfig) -> list[str]:
    """Packages that are only needed if asked for."""
    if logging.wandb_project is None or find_spec("wandb") is not None:
        return []
    rule = "the package wandb is not installed; in the checkout run: pip install -e '.[wandb]', or leave the key out"
    return [f"logging.wandb_project={logging.wandb_project}: {rule}"]


def check_directory(directory: str) -> list[str]:
    """The run's folder exists or can be made, and can be written to."""
    key = f"checkpoint.directory={directory}"
    if not directory:
        return [f"{key}: is needed to train; use a folder for this run, such as runs/first"]
    if directory.startswith("~"):
        return [f"{key}: ~ is not expanded; use {Path(directory).expanduser()}"]
    if any(len(os.fsencode(part)) > LONGEST_NAME_BYTES for part in Path(directory).parts):
        return [f"{key}: a name in it is longer than {LONGEST_NAME_BYTES} bytes; use a shorter one"]
    existing = Path(directory).absolute()
    # os.path answers no for names that cannot be looked up; Path would raise.
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.path.isdir(existing):
        return [f"{key}: {existing} is not a folder; use another path"]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"{key}: {existing} cannot be written to; use another folder or change its permissions"]
    return []
