"""What a start would do, and whether its run may go on: found out from JSON files, before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qwen_megatron.checkpoint.manifest import (
    check_latest,
    list_checkpoints,
    listed_files,
    none_whole,
    read_manifest,
    replaced,
)
from qwen_megatron.checkpoint.state import CheckpointState, check_continuable, check_heads
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.errors import CheckpointError
from qwen_megatron.jobs.architecture import check_head, check_same_shape, departures, read_source
from qwen_megatron.jobs.changes import Sources, check_changes
from qwen_megatron.model.head_kinds import LANGUAGE_MODEL
from qwen_megatron.train.names import MAIN
from qwen_megatron.train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a start would do.

    Attributes:
        folder: The checkpoint it goes on from; None for a new run.
        state: Where the run stands.
        last_step: Number of the step it stops after.
        init_from: Where the weights of a new run come from; None for fresh ones.
        notes: What is worth knowing, one line each.
    """

    folder: Path | None
    state: TrainState
    last_step: int
    init_from: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        step = self.state.iteration
        if self.folder is None:
            return "a new run" + (f" with the weights of {self.init_from}" if self.init_from is not None else "")
        if step >= self.last_step:
            return f"finished: {self.folder} is step {step} of {self.last_step}, nothing is left to train"
        return f"goes on from step {step} of {self.last_step} in {self.folder}"


def planned_start(
    config: ResolvedConfig,
    sources: Callable[[int], Sources] | None,
    *,
    heads: Mapping[str, str] = MappingProxyType({MAIN: LANGUAGE_MODEL}),
    with_sizes: bool = True,
) -> Start:
    """What a start of a job would do.

    The bytes of tensors are not looked at: of a checkpoint that is damaged in them a start takes the one before.

    Args:
        config: Resolved configuration.
        sources: What samples come from, after so many; None if that cannot be opened, then data is not compared.
        heads: Of each model that the job saves, by name.
        with_sizes: Look at the size of every file of a checkpoint: in one process of a job, they may be thousands.
    Raises:
        CheckpointError: if there is no checkpoint where there should be one, or the weights do not fit.
        ChangesRefused: if settings or data are not those of the checkpoint, and nobody has allowed it.
    """
    options, training = config.checkpoint, config.training
    folder = checkpoint_ahead(options, read_manifest if with_sizes else listed_files)
    if folder is None:
        last = config.num_steps if training.exit_iter is None else min(training.exit_iter, config.num_steps)
        notes: tuple[str, ...] = ()
        if options.init_from is not None:
            source = read_source(Path(options.init_from))
            check_same_shape(source, config.model)
            check_head(source, heads[MAIN])
            notes = tuple(departures(source, config.model))
        return Start(folder=None, state=TrainState(), last_step=last, init_from=options.init_from, notes=notes)
    saved = CheckpointState.read(folder)
    check_continuable(saved, folder, dict.fromkeys(heads, True))
    check_heads(saved, folder, heads)
    state = saved.train_state
    allowed = check_changes(saved, config, sources and sources(state.consumed_samples), folder)
    last = state.iteration + training.batch_sizes.steps_between(state.consumed_samples, training.samples_in_all)
    return Start(
        folder=folder,
        state=state,
        last_step=last if training.exit_iter is None else min(training.exit_iter, last),
        notes=tuple(f"allowed: {change}" for change in allowed),
    )


def checkpoint_ahead(options: CheckpointConfig, look: Callable[[Path], object]) -> Path | None:
    """The checkpoint that `checkpoint.load` means, as far as its small files tell; None for a new run.

    Args:
        options: Section `checkpoint`.
        look: Raises a CheckpointError if a folder is no checkpoint.
    Raises:
        CheckpointError: if the one that is named is not whole, or there are checkpoints and none is, or all are gone.
    """
    if options.load == "none":
        return None
    if options.load != "auto":
        look(Path(options.load))
        return Path(options.load)
    directory = Path(options.directory)
    # A start gives those that a killed run has left without their name that name back, before it looks.
    found = {path.name: path for path in list_checkpoints(directory)}
    found |= {final.name: path for path, final in replaced(directory)}
    check_latest(directory, [*found])
    problems = []
    for name in sorted(found, key=lambda name: (len(name), name), reverse=True):
        folder = found[name]
        try:
            look(folder)
            CheckpointState.read(folder)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return folder
    if problems:
        raise none_whole(directory, problems)
    return None
