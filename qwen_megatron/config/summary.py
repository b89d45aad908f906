"""A resolved configuration as text: the resolved tree in YAML, and a summary of a few lines."""

from __future__ import annotations

import json
from typing import Any

import yaml

from qwen_megatron.config.arithmetic.memory import rank_memory
from qwen_megatron.config.arithmetic.ppo import work_shares
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.config.schema import SECTIONS
from qwen_megatron.config.serialize import to_dict

# YAML folds longer lines, and a folded path is hard to copy.
WIDTH = 1 << 16
GIB = 2.0**30


def derived_values(config: ResolvedConfig) -> dict[str, Any]:
    """What follows from the settings."""
    return {
        "world_size": config.world_size,
        "data_parallel_size": config.data_parallel_size,
        "num_microbatches": config.num_microbatches,
        # Epochs of corpora that were not opened: a dry run of the job tells.
        "num_steps": None if config.training.train_epochs is not None else config.num_steps,
        "padded_vocab_size": config.padded_vocab_size,
        "layers_per_stage": list(config.layers_per_stage),
        "num_parameters": config.num_parameters,
        "num_parameters_per_rank": list(config.num_parameters_per_rank),
        "memory_bytes_per_rank": [memory.total for memory in rank_memory(config)],
        "tokens_per_step": config.tokens_per_step,
        "tokens_in_all": None if config.training.train_epochs is not None else tokens_in_all(config),
        "flops_per_token": config.flops_per_token,
        **({"work_shares": work_shares(config)} if config.shape.has_ppo_models else {}),
    }


def tokens_in_all(config: ResolvedConfig) -> int:
    """Tokens of the whole run."""
    samples = config.training.batch_sizes.samples_after(config.num_steps)
    return samples * config.shape.rows_per_sample * config.training.seq_length


def as_yaml(config: ResolvedConfig) -> str:
    """All settings, which can be loaded again, and the derived values."""
    derived = yaml.safe_dump({"derived": derived_values(config)}, sort_keys=False, default_flow_style=None, width=WIDTH)
    note = "# Worked out from the settings above; to use this as a configuration file, delete this section."
    return f"{settings_as_yaml(config)}{note}\n{derived}"


def as_json(config: ResolvedConfig) -> str:
    """All settings and the derived values, as `as_yaml` has them."""
    sections = {name: to_dict(getattr(config, name)) for name in SECTIONS}
    return json.dumps({**sections, "derived": derived_values(config)}, indent=2) + "\n"


def settings_as_yaml(config: ResolvedConfig) -> str:
    """All settings as a configuration file."""
    sections = {name: to_dict(getattr(config, name)) for name in SECTIONS}
    return yaml.safe_dump(sections, sort_keys=False, default_flow_style=False, allow_unicode=True, width=WIDTH)


def summary(config: ResolvedConfig) -> str:
    """A few lines for people."""
    model, parallel, training, optimizer = config.model, config.parallel, config.training, config.optimizer
    per_rank = config.num_parameters_per_rank
    steps = config.num_steps if training.exit_iter is None else training.exit_iter
    blend = [str(prefix) for prefix in config.data.blend]
    memory = max(rank_memory(config), key=lambda stage: stage.total)
    samples = "pairs" if config.shape.rows_per_sample > 1 else "sequences"
    head = ", a scalar head" if config.shape.has_scalar_head else ""
    rows = {
        "model": f"{config.num_parameters:,} parameters, {model.num_layers} layers, hidden {model.hidden_size}, "
        f"{model.num_attention_heads} heads, vocabulary {model.vocab_size} (padded {config.padded_vocab_size})"
        f"{head}",
        "layout": f"{config.world_size} {'process' if config.world_size == 1 else 'processes'}: "
        f"tensor {parallel.tensor_model_parallel_size} x pipeline {parallel.pipeline_model_parallel_size} "
        f"{f'x context {parallel.context_parallel_size} ' if parallel.context_parallel_size > 1 else ''}"
        f"x data {config.data_parallel_size}{', sequence parallel' if parallel.sequence_parallel else ''}; "
        f"platform {parallel.platform}",
        "stages": f"{' '.join(str(count) for count in config.layers_per_stage)} layers; at most {max(per_rank):,} "
        "parameters on a rank",
        "memory": f"about {memory.total / GIB:.1f} GiB on the fullest rank, {memory.state / GIB:.1f} of it weights, "
        "gradients and optimizer; by arithmetic, the device's own not counted",
        "batch": f"{training.global_batch_size} {samples} of {training.seq_length} tokens: {config.num_microbatches} "
        f"micro-batches of {training.micro_batch_size} on each replica{ramp_text(config)}",
        "run": f"{steps:,} of {config.num_steps:,} steps, {config.tokens_per_step:,} tokens a step, "
        f"{tokens_in_all(config):,} in all; {training.precision}",
        "rate": f"{optimizer.lr:g} after {optimizer.lr_warmup_iters} steps, {optimizer.min_lr:g} at step "
        f"{optimizer.lr_decay_iters}",
        "data": f"{len(blend)} {'corpus' if len(blend) == 1 else 'corpora'}, "
        f"{config.data.eval_samples} samples held out{evaluated_on(config)}",
        "folder": config.checkpoint.directory,
    }
    if config.shape.has_ppo_models:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in work_shares(config).items())
        rows["models"] = "policy, value, reference and reward model in memory; work of a step: " + shares
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def evaluated_on(config: ResolvedConfig) -> str:
    """The names of `data.eval_blend`, where there are any."""
    names = list(config.data.eval_blend)
    return f"; evaluated on {', '.join(names)}" if names else ""


def ramp_text(config: ResolvedConfig) -> str:
    """The way up to the full batch, where there is one."""
    sizes = config.training.batch_sizes
    if not sizes.samples:
        return ""
    return f"; from {sizes.start} in steps of {sizes.increment} over the first {sizes.samples:,}"
