"""Fills in what a user left open: from the preset, from other values, from the launcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.settings.problems import Problems, nearest_divisors, nearest_multiples
from data_tools.settings.words import join_or
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.config.rules.blend import check_blend, check_eval_blend
from qwen_megatron.config.schema import Settings
from qwen_megatron.config.sections.checkpoint import CheckpointConfig
from qwen_megatron.config.sections.data import DataConfig
from qwen_megatron.config.sections.logging import LoggingConfig
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.config.sections.optimizer import LARGEST_DEFAULT_WARMUP, OptimizerConfig
from qwen_megatron.config.sections.parallel import ParallelConfig
from qwen_megatron.config.sections.ppo import PpoConfig
from qwen_megatron.config.sections.training import PAPER_SEQ_LENGTH, TrainingConfig

Given = Mapping[str, Any]
PRETRAINING = "ppo.pretraining_blend"


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
    ppo: PpoConfig


def fill_sections(settings: Settings, world_size: int | None, problems: Problems) -> Sections:
    """All sections; where a value is wrong or missing, `problems` tells, and some value stands in its place."""
    model = fill_model(settings["model"], problems)
    training = fill_training(settings["training"], model, problems)
    blend = check_blend(settings["data"].get("blend", []), problems)
    held_out = check_eval_blend(settings["data"].get("eval_blend", []), blend, problems)
    data = {**settings["data"], "blend": blend, "eval_blend": held_out}
    return Sections(
        model=model,
        parallel=fill_parallel(settings["parallel"], world_size, problems),
        optimizer=fill_optimizer(settings["optimizer"], training, problems),
        training=training,
        data=DataConfig(**data),
        checkpoint=CheckpointConfig(**settings["checkpoint"]),
        logging=LoggingConfig(**settings["logging"]),
        ppo=fill_ppo(settings["ppo"], problems),
    )


def fill_model(settings: Given, problems: Problems) -> ModelConfig:
    """Given values, else the preset's, else the defaults of `ModelConfig`."""
    preset = settings.get("preset")
    given = {name: value for name, value in settings.items() if name != "preset"}
    values: dict[str, Any] = (vars(PRESETS[preset]) if preset is not None else {}) | given
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
        values["kv_channels"] = head_size(values, given, problems)
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


def head_size(values: Given, given: Given, problems: Problems) -> int:
    """`kv_channels` where it is not given."""
    hidden_size, heads = values["hidden_size"], values["num_attention_heads"]
    if not problems.usable("model.hidden_size", "model.num_attention_heads", "model.kv_channels"):
        problems.unusable.add("model.kv_channels")
        return 1
    if hidden_size % heads == 0:
        return hidden_size // heads
    problems.unusable.add("model.kv_channels")
    if "num_attention_heads" not in given:
        rule = f"must be a multiple of model.num_attention_heads({heads}) where model.kv_channels is not given"
        problems.add("model.hidden_size", hidden_size, f"{rule}; {nearest_multiples(heads, hidden_size)}")
    else:
        rule = f"must divide model.hidden_size({hidden_size}) where model.kv_channels is not given"
        problems.add("model.num_attention_heads", heads, f"{rule}; {nearest_divisors(hidden_size, heads)}")
    return 1


def fill_parallel(given: Given, launched: int | None, problems: Problems) -> ParallelConfig:
    """The world size is the launcher's, else the given one, else what one replica of the model needs."""
    asked = given.get("world_size")
    if launched is not None and asked not in (None, launched) and problems.usable("parallel.world_size"):
        rule = f"but torchrun started {launched} processes; use {launched}, or leave it out"
        problems.add("parallel.world_size", asked, rule)
    parallel = ParallelConfig(**{"world_size": 1, **given})
    if launched is not None:
        return dataclasses.replace(parallel, world_size=launched)
    return parallel if asked is not None else dataclasses.replace(parallel, world_size=parallel.replica_size)


def fill_training(given: Given, model: ModelConfig, problems: Problems) -> TrainingConfig:
    """The context trained on is the paper's where the model's is not shorter."""
    if "seq_length" not in given and not problems.usable("model.seq_length"):
        problems.unusable.add("training.seq_length")
    epochs = given.get("train_epochs")
    if epochs is not None and "train_iters" in given and problems.usable("training.train_epochs"):
        rule = f"cannot be combined with training.train_iters({given['train_iters']})"
        rule += "; use null to train for that many steps"
        problems.add("training.train_epochs", epochs, rule)
    return TrainingConfig(**{"seq_length": min(PAPER_SEQ_LENGTH, model.seq_length), **given})


def fill_optimizer(given: Given, training: TrainingConfig, problems: Problems) -> OptimizerConfig:
    """The schedule's lengths follow from the run's, and the lowest rate from the highest."""
    decay = given.get("lr_decay_iters", training.train_iters)
    follows = {"lr_decay_iters": "training.train_iters", "lr_wsd_decay_iters": "optimizer.lr_decay_iters"}
    for name, source in follows.items():
        if name not in given and not problems.usable(source):
            problems.unusable.add(f"optimizer.{name}")
    followed = {
        "min_lr": given.get("lr", OptimizerConfig.lr) / 10,
        "lr_decay_iters": decay,
        **schedule_lengths(decay),
    }
    return OptimizerConfig(**{**followed, **given})


def fill_ppo(given: Given, problems: Problems) -> PpoConfig:
    """The blend of pretraining text typed as `data.blend` is."""
    blend = check_blend(given.get("pretraining_blend", []), problems, PRETRAINING)
    return PpoConfig(**{**given, "pretraining_blend": blend})


def schedule_lengths(decay: int) -> dict[str, int]:
    """The lengths that follow `lr_decay_iters` where they are not given."""
    return {"lr_warmup_iters": min(LARGEST_DEFAULT_WARMUP, decay // 100), "lr_wsd_decay_iters": max(1, decay // 10)}
