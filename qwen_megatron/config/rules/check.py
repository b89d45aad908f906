"""All rules between the values of a configuration."""

from __future__ import annotations

import dataclasses
import math

from data_tools.settings.problems import Problems, nearest_divisors, nearest_multiples
from data_tools.settings.words import closest, show
from qwen_megatron.config.fill import Sections
from qwen_megatron.config.rules.batch import RAMP, check_batch
from qwen_megatron.config.rules.engine import check_engine
from qwen_megatron.config.rules.fp8 import check_fp8
from qwen_megatron.config.rules.stages import check_stages
from qwen_megatron.config.sections.logging import numbers_in
from qwen_megatron.config.sections.model import ModelConfig

TENSOR = "parallel.tensor_model_parallel_size"
PIPELINE = "parallel.pipeline_model_parallel_size"
CONTEXT = "parallel.context_parallel_size"
WORLD = "parallel.world_size"


def check_sections(sections: Sections, problems: Problems) -> None:
    """Rules between values; a rule on a value already found wrong is left out."""
    check_model(sections.model, problems)
    check_layout(sections, problems)
    check_stages(sections, problems)
    check_overlap(sections, problems)
    check_fp8(sections, problems)
    check_engine(sections, problems)
    check_sequence(sections, problems)
    check_batch(sections, problems)
    check_schedule(sections, problems)
    check_start(sections, problems)
    check_profile(sections, problems)


def check_model(model: ModelConfig, problems: Problems) -> None:
    """Rules inside the architecture."""
    heads, groups, head_size = model.num_attention_heads, model.num_query_groups, model.kv_channels
    if problems.usable("model.num_attention_heads", "model.num_query_groups") and heads % groups != 0:
        rule = f"must divide model.num_attention_heads({heads}); {nearest_divisors(heads, groups)}"
        problems.add("model.num_query_groups", groups, rule)
    if problems.usable("model.kv_channels"):
        if head_size % 2 != 0:
            rule = f"must be even, rotary embedding turns pairs; {nearest_multiples(2, head_size)}"
            problems.add("model.kv_channels", head_size, rule)
        elif head_size == 2 and model.use_dynamic_ntk:
            problems.add("model.kv_channels", head_size, "must be above 2 with model.use_dynamic_ntk; use 4")


def check_layout(sections: Sections, problems: Problems) -> None:
    """Tensor and pipeline sizes divide the model, and together the world."""
    model, parallel = sections.model, sections.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    split = {
        f"model.{name}": getattr(model, name)
        for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size")
        if problems.usable(f"model.{name}")
    }
    if split.get("model.num_query_groups") == split.get("model.num_attention_heads"):
        split.pop("model.num_query_groups", None)
    if problems.usable(TENSOR):
        broken = " and ".join(f"{key}({value})" for key, value in split.items() if value % tensor != 0)
        if broken:
            advice = nearest_divisors(math.gcd(*split.values()), tensor)
            problems.add(TENSOR, tensor, f"must divide {broken}; {advice}")
    replica = parallel.replica_size
    if problems.usable(WORLD, TENSOR, PIPELINE, CONTEXT) and parallel.world_size % replica != 0:
        context = f" x {CONTEXT}({parallel.context_parallel_size})" if parallel.context_parallel_size > 1 else ""
        rule = f"must be a multiple of {TENSOR}({tensor}) x {PIPELINE}({pipeline}){context} = {replica}"
        problems.add(WORLD, parallel.world_size, f"{rule}; {nearest_multiples(replica, parallel.world_size)}")
    if parallel.platform == "cpu" and model.implementation == "transformer_engine":
        rule = "needs a CUDA device, but parallel.platform is cpu; use torch"
        problems.add("model.implementation", model.implementation, rule)


def check_overlap(sections: Sections, problems: Problems) -> None:
    """What Megatron-Core can only overlap together, and what cannot be split over a sequence."""
    parallel = sections.parallel
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        rule = "needs parallel.overlap_grad_reduce; set that to true too, or this to false"
        problems.add("parallel.overlap_param_gather", True, rule)
    if parallel.gradient_bucket_size is not None and not parallel.overlap_grad_reduce:
        rule = "needs parallel.overlap_grad_reduce, without which all gradients are reduced at once; set that to true"
        problems.add("parallel.gradient_bucket_size", parallel.gradient_bucket_size, rule)
    if sections.data.mask_documents:
        check_document_mask(sections, problems, "with data.mask_documents")
    check_attention_dropout(sections, problems)


def torch_kernels(sections: Sections) -> bool:
    """Whether torch's kernels run for certain."""
    return sections.model.implementation == "torch" or sections.parallel.platform == "cpu"


def check_attention_dropout(sections: Sections, problems: Problems) -> None:
    """Whether masks depend on the layout must not depend on what is installed."""
    model = sections.model
    if (
        model.attention_dropout
        and model.implementation == "auto"
        and not torch_kernels(sections)
        and problems.usable("model.attention_dropout", "model.implementation")
    ):
        rule = "must be named with model.attention_dropout: masks of Transformer Engine depend on the layout, torch's"
        problems.add("model.implementation", "auto", f"{rule} do not; use torch or transformer_engine")


def check_document_mask(sections: Sections, problems: Problems, reason: str) -> None:
    """Kernels that would divide documents otherwise than our slices of a sequence are refused.

    Args:
        sections: As given.
        problems: Filled.
        reason: Why documents do not see each other, such as `with data.mask_documents`.
    """
    size = sections.parallel.context_parallel_size
    if size > 1 and not torch_kernels(sections):
        rule = f"must be torch {reason} and {CONTEXT}({size})"
        why = "Transformer Engine divides every document over the processes, not the sequence"
        problems.add("model.implementation", sections.model.implementation, f"{rule}: {why}; use torch")


def check_sequence(sections: Sections, problems: Problems) -> None:
    """The context trained on fits sequence parallelism and the model."""
    model, training, tensor = sections.model, sections.training, sections.parallel.tensor_model_parallel_size
    split = sections.parallel.sequence_parallel
    if split and tensor == 1 and problems.usable("parallel.sequence_parallel", TENSOR):
        rule = f"splits the sequence over tensor-parallel processes, but {TENSOR} is 1; use false, or raise {TENSOR}"
        problems.add("parallel.sequence_parallel", True, rule)
    check_split_sequence(sections, problems)
    stretches = [f"model.{name}" for name in ("use_dynamic_ntk", "use_logn_attn") if getattr(model, name)]
    if (
        stretches
        and problems.usable("training.seq_length", "model.seq_length", *stretches)
        and training.seq_length > model.seq_length
    ):
        rule = f"must be at most model.seq_length({model.seq_length}) with {' and '.join(stretches)}"
        reason = "evaluation would stretch positions that training does not"
        problems.add("training.seq_length", training.seq_length, f"{rule}: {reason}; use {model.seq_length}")


def check_split_sequence(sections: Sections, problems: Problems) -> None:
    """The sequence divides into two slices for each context-parallel process, and each rest over tensor parallelism."""
    parallel, seq_length = sections.parallel, sections.training.seq_length
    if not problems.usable("training.seq_length", TENSOR, CONTEXT):
        return
    parts, reasons = 1, []
    if parallel.context_parallel_size > 1:
        parts, reasons = 2 * parallel.context_parallel_size, [f"2 x {CONTEXT}({parallel.context_parallel_size})"]
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1:
        tensor = parallel.tensor_model_parallel_size
        parts, reasons = parts * tensor, [*reasons, f"{TENSOR}({tensor})"]
    if seq_length % parts != 0:
        with_option = " with parallel.sequence_parallel" if parallel.sequence_parallel else ""
        rule = f"must be a multiple of {' x '.join(reasons)}{f' = {parts}' if len(reasons) > 1 else ''}{with_option}"
        problems.add("training.seq_length", seq_length, f"{rule}; {nearest_multiples(parts, seq_length)}")


def check_schedule(sections: Sections, problems: Problems) -> None:
    """Warm-up, decay and stop come in this order, and the rate falls."""
    optimizer, training = sections.optimizer, sections.training
    warmup, decay = optimizer.lr_warmup_iters, optimizer.lr_decay_iters
    if problems.usable("optimizer.lr_warmup_iters", "optimizer.lr_decay_iters") and warmup >= decay:
        rule = f"must be below optimizer.lr_decay_iters({decay}); use {decay - 1}"
        problems.add("optimizer.lr_warmup_iters", warmup, rule)
    wsd = optimizer.lr_wsd_decay_iters
    usable = problems.usable("optimizer.lr_warmup_iters", "optimizer.lr_decay_iters", "optimizer.lr_wsd_decay_iters")
    if usable and optimizer.lr_decay_style == "WSD" and warmup < decay < warmup + wsd:
        rule = f"must be at most lr_decay_iters({decay}) - lr_warmup_iters({warmup}); use {decay - warmup}"
        problems.add("optimizer.lr_wsd_decay_iters", wsd, rule)
    if problems.usable("optimizer.lr", "optimizer.min_lr") and optimizer.min_lr > optimizer.lr:
        rule = f"must be at most optimizer.lr({show(optimizer.lr)}); use {show(optimizer.lr)}"
        problems.add("optimizer.min_lr", optimizer.min_lr, rule)
    exit_iter = training.exit_iter
    if exit_iter is None or not problems.usable("training.exit_iter", "training.train_iters"):
        return
    steps = training.train_iters
    if training.batch_sizes.samples:
        if not problems.usable(*RAMP, "training.global_batch_size"):
            return
        steps = training.batch_sizes.steps_between(0, training.samples_in_all)
    if exit_iter > steps:
        ramp = f" = {steps} steps with the ramp" if steps != training.train_iters else ""
        rule = f"must be at most training.train_iters({training.train_iters}){ramp}; use {steps}"
        problems.add("training.exit_iter", exit_iter, rule)


def check_start(sections: Sections, problems: Problems) -> None:
    """A run starts from one place."""
    checkpoint = sections.checkpoint
    known = tuple(
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(sections)
        for field in dataclasses.fields(getattr(sections, section.name))
    )
    for key in checkpoint.allow_changes:
        if key not in known:
            problems.add(
                "checkpoint.allow_changes", key, f"is no setting; the closest known one is {closest(key, known)}"
            )
    if not problems.usable("checkpoint.load", "checkpoint.init_from"):
        return
    if checkpoint.load == "":
        problems.add("checkpoint.load", "", "must be auto, none or the path of a checkpoint; use auto")
    elif checkpoint.load not in ("auto", "none") and checkpoint.init_from is not None:
        rule = f"cannot be combined with checkpoint.load={checkpoint.load}, which brings its own weights; leave one out"
        problems.add("checkpoint.init_from", checkpoint.init_from, rule)


def check_profile(sections: Sections, problems: Problems) -> None:
    """Steps and ranks to profile are lists of numbers that exist."""
    logging = sections.logging
    rules = (
        ("logging.profile_steps", logging.profile_steps, 1, "training.train_iters", sections.training.train_iters),
        ("logging.profile_ranks", logging.profile_ranks, 0, WORLD, sections.parallel.world_size),
    )
    for key, text, first, bound_key, count in rules:
        # Without a launcher the world follows from the sizes.
        if text is None or not problems.usable(key, bound_key, TENSOR, PIPELINE, CONTEXT):
            continue
        try:
            numbers = numbers_in(text)
        except ValueError as error:
            problems.add(key, text, str(error))
            continue
        last = first + count - 1
        if min(numbers) < first or max(numbers) > last:
            problems.add(key, text, f"must lie between {first} and {last}, because of {bound_key}({count})")
