"""Where a run starts: at its newest checkpoint, at the weights of another one, or anew."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from qwen_megatron.checkpoint.contents import SmallState, plan_sections, saved_model_config
from qwen_megatron.checkpoint.load import find_newest, load_checkpoint, load_weights, verify_checkpoint
from qwen_megatron.config.model import ModelConfig
from qwen_megatron.config.resolve import Plan
from qwen_megatron.convert.hf_folder import HfFolder, is_hf_folder
from qwen_megatron.convert.into_model import fill_model
from qwen_megatron.data.dataset import BlendedDataset
from qwen_megatron.errors import CheckpointError
from qwen_megatron.train.engine import Engine
from qwen_megatron.train.state import TrainState

log = logging.getLogger(__name__)

# They may change between two parts of a run without a change in what it computes.
HARMLESS = (
    "training.exit_iter",
    "training.eval_interval",
    "training.micro_batch_size",
    "training.skip_nonfinite_steps",
    "training.spike_sigmas",
)

# With another value of these, sample numbers mean other tokens.
ORDER_OF_SAMPLES = (("training", "seed"), ("training", "seq_length"), ("data", "eval_samples"))

START_ANEW = "start from its weights alone with checkpoint.load=none and checkpoint.init_from="


def restore(plan: Plan, engine: Engine, dataset: BlendedDataset) -> TrainState:
    """Goes on from `checkpoint.load`, starts from `checkpoint.init_from`, or starts anew.

    Raises:
        CheckpointError: if what is asked for is not whole, does not fit, or was trained on other data.
    """
    folder = checkpoint_to_resume(plan)
    if folder is not None:
        small = load_checkpoint(folder, engine)
        check_data_unchanged(small, plan, dataset, folder)
        for change in changed_settings(small.config, plan):
            log_main("note: %s", change)
        log_main("going on from %s (step %d)", folder, small.train_state.iteration)
        return small.train_state
    if plan.checkpoint.init_from is not None:
        start_from_weights(Path(plan.checkpoint.init_from), plan, engine)
    return TrainState()


def start_from_weights(source: Path, plan: Plan, engine: Engine) -> None:
    """Continued pretraining: the weights of a checkpoint or a Hugging Face folder, everything else anew.

    Raises:
        CheckpointError: if the source is not whole or has another shape than the plan's model.
    """
    if is_hf_folder(source):
        folder = HfFolder(source)
        check_same_shape(source, folder.model, plan.model)
        for model in engine.models:
            fill_model(folder, model)
        # The fp32 masters are copies of the weights: they follow.
        engine.optimizer.reload_model_params()
        saved = folder.model
    else:
        verify_checkpoint(source)
        saved = saved_model_config(source)
        check_same_shape(source, saved, plan.model)
        load_weights(source, engine)
    for name in ("rotary_base", "layernorm_epsilon"):
        if getattr(saved, name) != getattr(plan.model, name):
            # Wanted when the context is extended, wrong otherwise.
            log_main("note: model.%s is %s, %s had %s", name, getattr(plan.model, name), source, getattr(saved, name))
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


def changed_settings(saved: dict[str, Any], plan: Plan) -> list[str]:
    """Settings that training depends on and that differ from the checkpoint's; the new ones are used."""
    sections = plan_sections(plan)
    return [
        f"{section}.{name} is {sections[section][name]}, the checkpoint was trained with {value}"
        for section in ("model", "optimizer", "training")
        for name, value in saved[section].items()
        if f"{section}.{name}" not in HARMLESS and sections[section].get(name, value) != value
    ]


def checkpoint_to_resume(plan: Plan) -> Path | None:
    choice = plan.checkpoint.load
    if choice == "none":
        return None
    if choice == "auto":
        return find_newest(Path(plan.checkpoint.directory))
    folder = Path(choice)
    verify_checkpoint(folder)
    return folder


def check_data_unchanged(small: SmallState, plan: Plan, dataset: BlendedDataset, folder: Path) -> None:
    """Refuses to go on with other data or in another order: the cursor would point at other samples.

    Raises:
        CheckpointError: naming the corpora or the settings that differ.
    """
    then = {prefix: str(entry["fingerprint"]) for prefix, entry in small.data.items()}
    now = dataset.fingerprints()
    if sorted(now.values()) != sorted(then.values()):
        gone = [prefix for prefix, value in then.items() if value not in now.values()]
        new = [prefix for prefix, value in now.items() if value not in then.values()]
        raise CheckpointError(
            f"{folder}: was trained on other data (then but not now: {gone or 'nothing'}; now but not then: "
            f"{new or 'nothing'}). Name the same corpora in data.blend, or {START_ANEW}{folder}"
        )
    sections = plan_sections(plan)
    different = [
        f"{section}.{name}={sections[section][name]}, then {small.config[section][name]}"
        for section, name in ORDER_OF_SAMPLES
        if small.config[section][name] != sections[section][name]
    ]
    used_then = sorted((then[prefix], entry["consumed_samples"]) for prefix, entry in small.data.items())
    consumed = dataset.consumed(small.train_state.consumed_samples)
    if sorted((now[prefix], count) for prefix, count in consumed.items()) != used_then:
        different.append(f"data.blend={sections['data']['blend']}, then {small.config['data']['blend']}")
    if different:
        raise CheckpointError(
            f"{folder}: samples would be repeated and others left out, because their order changes with "
            f"{'; '.join(different)}. Use the values of then, or {START_ANEW}{folder}"
        )


def log_main(message: str, *arguments: object) -> None:
    if dist.get_rank() == 0:
        log.info(message, *arguments)
