"""Where a run starts: at its newest checkpoint, at the weights of another one, or anew."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from qwen_megatron.checkpoint.agreement import failing_together
from qwen_megatron.checkpoint.choice import agree_on_counters, agree_on_weights
from qwen_megatron.checkpoint.finite import check_loaded
from qwen_megatron.checkpoint.load import find_newest, load_checkpoint, load_weights, verify_checkpoint
from qwen_megatron.checkpoint.state import CheckpointState
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.serialize import from_dict, to_dict
from qwen_megatron.convert.hf_folder import HfFolder
from qwen_megatron.convert.hf_format import Format
from qwen_megatron.convert.hf_paths import is_hf_folder
from qwen_megatron.convert.load_hf_weights import load_hf_weights, spread_weights
from qwen_megatron.errors import CheckpointError
from qwen_megatron.jobs.architecture import SourceModel, check_head, check_same_shape, departures, saved_source
from qwen_megatron.jobs.changes import check_changes
from qwen_megatron.parallel.objects import all_gather, broadcast, of_type
from qwen_megatron.train.job import Job
from qwen_megatron.train.state import TrainState
from qwen_megatron.train.trainable import MAIN, Trainable

log = logging.getLogger(__name__)


def restore(job: Job, trainables: Mapping[str, Trainable]) -> TrainState:
    """Goes on from `checkpoint.load`, starts from `checkpoint.init_from`, or starts anew.

    Args:
        job: Told what it had saved.
        trainables: The models of the job, overwritten; `init_from` is for the one called `model`.
    Raises:
        CheckpointError: if what is asked for is not whole, does not fit, or holds NaN or infinity.
        ChangesRefused: if settings or data are not those it was trained with, and nobody has allowed it.
    """
    options = job.config.checkpoint
    folder = checkpoint_to_resume(options)
    state = TrainState()
    if folder is not None:
        ahead = CheckpointState.read(folder)
        for change in check_changes(ahead, job.config, job.sources(ahead.train_state), folder):
            log_main("allowed: %s", change)
        saved = load_checkpoint(folder, trainables)
        if not options.allow_nonfinite:
            for trainable in trainables.values():
                check_loaded(trainable, folder, weights_only=False)
        job.load_state_dict(saved.job)
        log_main("going on from %s (step %d)", folder, saved.train_state.iteration)
        state = saved.train_state
    elif options.init_from is not None:
        start_from_weights(Path(options.init_from), trainables[MAIN], allow_nonfinite=options.allow_nonfinite)
    agree_on_counters(options.directory, dataclasses.asdict(state))
    return state


def start_from_weights(source: Path, trainable: Trainable, *, allow_nonfinite: bool = False) -> None:
    """The weights of a checkpoint or a Hugging Face folder, everything else anew.

    A model with a scalar head takes those of a language model too; its head stays as the seed has made it.

    Raises:
        CheckpointError: if the source is not whole, has another shape than the model, or holds NaN or infinity.
    """
    wanted = trainable.model
    agree_on_model(source, wanted)
    # Replicas hold the same weights: the first one reads, at every place of the others.
    reads = trainable.groups.dp_cp.rank() == 0
    if agree_on_weights(source, is_hf_folder, reads=reads):
        saved = fill_from_folder(source, trainable, reads=reads)
    else:
        saved = saved_source(source)
        check_same_shape(saved, wanted)
        check_head(saved, trainable.head)
        load_weights(source, trainable)
    if not allow_nonfinite:
        check_loaded(trainable, source, weights_only=True)
    for note in departures(saved, wanted):
        log_main("%s", note)
    log_main("starting with the weights of %s", source)


def agree_on_model(source: Path, wanted: ModelConfig) -> None:
    """Every rank has taken the same architecture from what it sees of the source; collective.

    Raises:
        CheckpointError: on every rank, naming one that has another.
    """
    everyone = all_gather(json.dumps(to_dict(wanted)), of_type(str))
    odd = next((rank for rank, model in enumerate(everyone) if model != everyone[0]), None)
    if odd is not None:
        raise CheckpointError(
            f"checkpoint.init_from={source}: rank {odd} sees another model there than rank 0; make sure that all nodes "
            "see the same files, and start again"
        )


def fill_from_folder(source: Path, trainable: Trainable, *, reads: bool) -> SourceModel:
    """Fills a model from a Hugging Face folder; collective.

    Each rank of the first replica reads the slices that it holds, then hands them to the ranks at its place in the
    other replicas. Nobody waits for weights before all have been read: an error of a reader comes first.

    Args:
        source: The folder.
        trainable: Overwritten.
        reads: Whether this rank is of the first replica.
    Returns:
        What the folder says of its model.
    Raises:
        CheckpointError: on every rank, if a rank cannot read, or the shapes differ.
    """
    with failing_together():
        folder = HfFolder(source) if reads else None
    told = broadcast(
        None if folder is None else {"format": folder.hf_format, "model": to_dict(folder.model)}, of_type(dict)
    )
    model = from_dict(ModelConfig, told["model"], "model")
    saved = SourceModel(path=source, model=model, hf_format=Format(told["format"]))
    check_same_shape(saved, trainable.model)
    with failing_together():
        if folder is not None:
            for model in trainable.models:
                load_hf_weights(folder, model)
    for model in trainable.models:
        spread_weights(model, trainable.groups.dp_cp)
    if trainable.optimizer is not None:
        # The fp32 masters are copies of the weights: they follow.
        trainable.optimizer.reload_model_params()
    return saved


def checkpoint_to_resume(options: CheckpointConfig) -> Path | None:
    """The checkpoint that `checkpoint.load` means; None for a fresh start."""
    choice = options.load
    if choice == "none":
        return None
    if choice == "auto":
        return find_newest(Path(options.directory))
    folder = Path(choice)
    verify_checkpoint(folder)
    return folder


def log_main(message: str, *arguments: object) -> None:
    """Logs a message on rank 0."""
    if dist.get_rank() == 0:
        log.info(message, *arguments)
