"""Fills in what a user left open: from the preset, from other values, from the launcher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qwen_megatron.config.blend import check_blend
from qwen_megatron.config.checkpoint import CheckpointConfig
from qwen_megatron.config.data import DataConfig
from qwen_megatron.config.logging import LoggingConfig
from qwen_megatron.config.model import ModelConfig, ModelOptions
from qwen_megatron.config.optimizer import LARGEST_DEFAULT_WARMUP, OptimizerConfig, OptimizerOptions
from qwen_megatron.config.parallel import ParallelConfig, ParallelOptions
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.config.problems import Problems, nearest_divisors, nearest_multiples
from qwen_megatron.config.schema import Config
from qwen_megatron.config.setting import join_or
from qwen_megatron.config.training import PAPER_SEQ_LENGTH, TrainingConfig, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The sections with no value open."""

    model: ModelConfig
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    data: DataConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig


def fill_sections(config: Config, world_size: int | None, problems: Problems) -> Sections:
    """All sections; where a value is wrong or missing, `problems` tells, and some value stands in its place."""
    model = load_hf_weights(config.model, problems)
    training = fill_training(config.training, model, problems)
    return Sections(
        model=model,
        parallel=fill_parallel(config.parallel, world_size, problems),
        optimizer=fill_optimizer(config.optimizer, training, problems),
        training=training,
        data=DataConfig(
            blend=check_blend(config.data.blend, problems),
            eval_samples=config.data.eval_samples,
            mask_documents=config.data.mask_documents,
            num_workers=config.data.num_workers,
        ),
        checkpoint=dataclasses.replace(config.checkpoint, allow_changes=tuple(config.checkpoint.allow_changes)),
        logging=config.logging,
    )


def load_hf_weights(options: ModelOptions, problems: Problems) -> ModelConfig:
    """Given values, else the preset's, else the defaults of `ModelConfig`."""
    preset = PRESETS.get(options.preset) if options.preset is not None else None
    given = {name: value for name, value in vars(options).items() if name != "preset" and value is not None}
    values: dict[str, Any] = vars(preset) | given if preset is not None else dict(given)
    # A preset's head size and key/value heads belong to its own width and heads.
    if "num_attention_heads" in given and "num_query_groups" not in given:
        values.pop("num_query_groups", None)
    if not given.keys().isdisjoint(("hidden_size", "num_attention_heads")) and "kv_channels" not in given:
        values.pop("kv_channels", None)
    fill_missing(values, problems)
    if not problems.usable("model.num_attention_heads"):
        problems.unusable.add("model.num_query_groups")
    values.setdefault("num_query_groups", values["num_attention_heads"])
    if "kv_channels" not in values:
        values["kv_channels"] = head_size(values["hidden_size"], values["num_attention_heads"], options, problems)
    return ModelConfig(**values)


def fill_missing(values: dict[str, Any], problems: Problems) -> None:
    """Defaults of `ModelConfig`; what has none and no other value to follow from is a problem."""
    missing = []
    for field in dataclasses.fields(ModelConfig):
        if field.name in values or field.name in ("num_query_groups", "kv_channels"):
            continue
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
            continue
        values[field.name] = 1  # Stands in until the problem is raised; no rule uses it.
        if problems.usable(f"model.{field.name}"):
            missing.append(f"model.{field.name}")
    if missing and problems.usable("model.preset"):
        rule = f"is needed unless the whole architecture is given, and {', '.join(missing)} is missing"
        problems.add("model.preset", None, f"{rule}; use {join_or(tuple(PRESETS))}")
    problems.unusable.update(missing)


def head_size(hidden_size: int, heads: int, options: ModelOptions, problems: Problems) -> int:
    """`kv_channels` where it is not given."""
    if not problems.usable("model.hidden_size", "model.num_attention_heads", "model.kv_channels"):
        problems.unusable.add("model.kv_channels")
        return 1
    if hidden_size % heads == 0:
        return hidden_size // heads
    problems.unusable.add("model.kv_channels")
    if options.num_attention_heads is None:
        rule = f"must be a multiple of model.num_attention_heads({heads}) where model.kv_channels is not given"
        problems.add("model.hidden_size", hidden_size, f"{rule}; {nearest_multiples(heads, hidden_size)}")
    else:
        rule = f"must divide model.hidden_size({hidden_size}) where model.kv_channels is not given"
        problems.add("model.num_attention_heads", heads, f"{rule}; {nearest_divisors(hidden_size, heads)}")
    return 1


def fill_parallel(options: ParallelOptions, launched: int | None, problems: Problems) -> ParallelConfig:
    """The world size is the launcher's, else the given one, else what one replica of the model needs."""
    given = options.world_size
    replica = options.tensor_model_parallel_size * options.pipeline_model_parallel_size * options.context_parallel_size
    if launched is not None and given not in (None, launched) and problems.usable("parallel.world_size"):
        rule = f"but torchrun started {launched} processes; use {launched}, or leave it out"
        problems.add("parallel.world_size", given, rule)
    world_size = launched if launched is not None else given if given is not None else replica
    return ParallelConfig(**{**vars(options), "world_size": world_size})


def fill_training(options: TrainingOptions, model: ModelConfig, problems: Problems) -> TrainingConfig:
    """The context trained on is the paper's where the model's is not shorter."""
    seq_length = options.seq_length
    if seq_length is None:
        seq_length = min(PAPER_SEQ_LENGTH, model.seq_length)
        if not problems.usable("model.seq_length"):
            problems.unusable.add("training.seq_length")
    return TrainingConfig(**{**vars(options), "seq_length": seq_length})


def fill_optimizer(options: OptimizerOptions, training: TrainingConfig, problems: Problems) -> OptimizerConfig:
    """The schedule's lengths follow from the run's."""
    decay = options.lr_decay_iters
    if decay is None:
        decay = training.train_iters
        if not problems.usable("training.train_iters"):
            problems.unusable.add("optimizer.lr_decay_iters")
    warmup = options.lr_warmup_iters
    if warmup is None:
        warmup = min(LARGEST_DEFAULT_WARMUP, decay // 100)
    wsd = options.lr_wsd_decay_iters
    if wsd is None:
        wsd = max(1, decay // 10)
        if not problems.usable("optimizer.lr_decay_iters"):
            problems.unusable.add("optimizer.lr_wsd_decay_iters")
    min_lr = options.min_lr
    if min_lr is None:
        min_lr = options.lr / 10
    fixed = {"min_lr": min_lr, "lr_warmup_iters": warmup, "lr_decay_iters": decay, "lr_wsd_decay_iters": wsd}
    return OptimizerConfig(**{**vars(options), **fixed})
