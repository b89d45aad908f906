"""Where a run starts: at its newest checkpoint, at the weights of another one, or anew."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist

from qwen_megatron.checkpoint.contents import SmallState, saved_model_config
from qwen_megatron.checkpoint.finite import check_loaded
from qwen_megatron.checkpoint.load import find_newest, load_checkpoint, load_weights, verify_checkpoint
from qwen_megatron.config.model import ModelConfig
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.convert.hf_folder import HfFolder, is_hf_folder
from qwen_megatron.convert.into_model import fill_model
from qwen_megatron.data.pretraining.dataset import BlendedDataset
from qwen_megatron.errors import CheckpointError
from qwen_megatron.jobs.changes import check_changes
from qwen_megatron.train.engine import Engine
from qwen_megatron.train.state import TrainState

log = logging.getLogger(__name__)


def restore(config: ResolvedConfig, engine: Engine, dataset: BlendedDataset) -> TrainState:
    """Goes on from `checkpoint.load`, starts from `checkpoint.init_from`, or starts anew.

    Raises:
        CheckpointError: if what is asked for is not whole, does not fit, or holds NaN or infinity.
        ChangesRefused: if settings or data are not those it was trained with, and nobody has allowed it.
    """
    folder = checkpoint_to_resume(config)
    if folder is not None:
        for change in check_changes(SmallState.read(folder), config, dataset, folder):
            log_main("allowed: %s", change)
        small = load_checkpoint(folder, engine)
        if not config.checkpoint.allow_nonfinite:
            check_loaded(engine, folder, weights_only=False)
        log_main("going on from %s (step %d)", folder, small.train_state.iteration)
        return small.train_state
    if config.checkpoint.init_from is not None:
        start_from_weights(Path(config.checkpoint.init_from), config, engine)
    return TrainState()


def start_from_weights(source: Path, config: ResolvedConfig, engine: Engine) -> None:
    """Continued pretraining: the weights of a checkpoint or a Hugging Face folder, everything else anew.

    Raises:
        CheckpointError: if the source is not whole or has another shape than the configured model.
    """
    if is_hf_folder(source):
        folder = HfFolder(source)
        check_same_shape(source, folder.model, config.model)
        for model in engine.models:
            fill_model(folder, model)
        # The fp32 masters are copies of the weights: they follow.
        engine.optimizer.reload_model_params()
        saved = folder.model
    else:
        verify_checkpoint(source)
        saved = saved_model_config(source)
        check_same_shape(source, saved, config.model)
        load_weights(source, engine)
    if not config.checkpoint.allow_nonfinite:
        check_loaded(engine, source, weights_only=True)
    for name in ("rotary_base", "layernorm_epsilon"):
        if getattr(saved, name) != getattr(config.model, name):
            # Wanted when the context is extended, wrong otherwise.
            log_main("note: model.%s is %s, %s had %s", name, getattr(config.model, name), source, getattr(saved, name))
    log_main("starting with the weights of %s", source)


def check_same_shape(source: Path, saved: ModelConfig, wanted: ModelConfig) -> None:
    """Raises:
    CheckpointError: naming every setting of the shape that differs.
    """
    names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
    different = [
        f"model.{name}={getattr(wanted, name)}, but it has {getattr(saved, name)}"
        for name in (*names, "vocab_size", "tie_word_embeddings")
        if getattr(saved, name) != getattr(wanted, name)
    ]
    if different:
        raise CheckpointError(f"checkpoint.init_from={source}: {'; '.join(different)}; use the values it has")


def checkpoint_to_resume(config: ResolvedConfig) -> Path | None:
    choice = config.checkpoint.load
    if choice == "none":
        return None
    if choice == "auto":
        return find_newest(Path(config.checkpoint.directory))
    folder = Path(choice)
    verify_checkpoint(folder)
    return folder


def log_main(message: str, *arguments: object) -> None:
    if dist.get_rank() == 0:
        log.info(message, *arguments)
