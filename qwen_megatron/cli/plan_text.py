"""A plan as text: the resolved tree in YAML, and a summary of a few lines."""

from __future__ import annotations

from typing import Any

import yaml

from qwen_megatron.config.load import SECTIONS
from qwen_megatron.config.memory import rank_memory
from qwen_megatron.config.resolve import Plan
from qwen_megatron.config.serialize import to_dict

# YAML folds longer lines, and a folded path is hard to copy.
WIDTH = 1 << 16
GIB = 2.0**30


def derived_values(plan: Plan) -> dict[str, Any]:
    """What follows from the settings."""
    return {
        "world_size": plan.world_size,
        "data_parallel_size": plan.data_parallel_size,
        "num_microbatches": plan.num_microbatches,
        "num_steps": plan.num_steps,
        "padded_vocab_size": plan.padded_vocab_size,
        "layers_per_stage": list(plan.layers_per_stage),
        "num_parameters": plan.num_parameters,
        "num_parameters_per_rank": list(plan.num_parameters_per_rank),
        "memory_bytes_per_rank": [memory.total for memory in rank_memory(plan)],
        "tokens_per_step": plan.tokens_per_step,
        "tokens_in_all": tokens_in_all(plan),
        "flops_per_token": plan.flops_per_token,
    }


def tokens_in_all(plan: Plan) -> int:
    """Tokens of the whole run."""
    return plan.training.batch_sizes.samples_after(plan.num_steps) * plan.training.seq_length


def plan_as_yaml(plan: Plan) -> str:
    """All settings, which can be loaded again, and the derived values."""
    sections = {name: to_dict(getattr(plan, name)) for name in SECTIONS}
    settings = yaml.safe_dump(sections, sort_keys=False, default_flow_style=False, allow_unicode=True, width=WIDTH)
    derived = yaml.safe_dump({"derived": derived_values(plan)}, sort_keys=False, default_flow_style=None, width=WIDTH)
    note = "# Worked out from the settings above; to use this as a configuration file, delete this section."
    return f"{settings}{note}\n{derived}"


def plan_summary(plan: Plan) -> str:
    """A few lines for people."""
    model, parallel, training, optimizer = plan.model, plan.parallel, plan.training, plan.optimizer
    per_rank = plan.num_parameters_per_rank
    steps = plan.num_steps if training.exit_iter is None else training.exit_iter
    blend = [str(prefix) for prefix in plan.data.blend]
    memory = max(rank_memory(plan), key=lambda stage: stage.total)
    state = memory.weights + memory.gradients + memory.optimizer
    rows = {
        "model": f"{plan.num_parameters:,} parameters, {model.num_layers} layers, hidden {model.hidden_size}, "
        f"{model.num_attention_heads} heads, vocabulary {model.vocab_size} (padded {plan.padded_vocab_size})",
        "layout": f"{plan.world_size} {'process' if plan.world_size == 1 else 'processes'}: "
        f"tensor {parallel.tensor_model_parallel_size} x pipeline {parallel.pipeline_model_parallel_size} "
        f"{f'x context {parallel.context_parallel_size} ' if parallel.context_parallel_size > 1 else ''}"
        f"x data {plan.data_parallel_size}{', sequence parallel' if parallel.sequence_parallel else ''}; "
        f"platform {parallel.platform}",
        "stages": f"{' '.join(str(count) for count in plan.layers_per_stage)} layers; at most {max(per_rank):,} "
        "parameters on a rank",
        "memory": f"about {memory.total / GIB:.1f} GiB on the fullest rank, {state / GIB:.1f} of it weights, gradients "
        "and optimizer; by arithmetic, the device's own not counted",
        "batch": f"{training.global_batch_size} sequences of {training.seq_length} tokens: {plan.num_microbatches} "
        f"micro-batches of {training.micro_batch_size} on each replica{ramp_text(plan)}",
        "run": f"{steps:,} of {plan.num_steps:,} steps, {plan.tokens_per_step:,} tokens a step, "
        f"{tokens_in_all(plan):,} in all; {training.precision}",
        "rate": f"{optimizer.lr:g} after {optimizer.lr_warmup_iters} steps, {optimizer.min_lr:g} at step "
        f"{optimizer.lr_decay_iters}",
        "data": f"{len(blend)} {'corpus' if len(blend) == 1 else 'corpora'}, {plan.data.eval_samples} samples held out",
        "folder": plan.checkpoint.directory,
    }
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def ramp_text(plan: Plan) -> str:
    """The way up to the full batch, where there is one."""
    sizes = plan.training.batch_sizes
    if not sizes.samples:
        return ""
    return f"; from {sizes.start} in steps of {sizes.increment} over the first {sizes.samples:,}"
