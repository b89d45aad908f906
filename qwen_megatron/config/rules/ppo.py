"""Rules of PPO between settings."""

from __future__ import annotations

from data_tools.settings.problems import Problems, nearest_multiples
from qwen_megatron.config.fill import Sections

FULL = "training.global_batch_size"
RAMP = "training.rampup_start_batch_size"
LAYOUT = (
    "parallel.world_size",
    "parallel.tensor_model_parallel_size",
    "parallel.pipeline_model_parallel_size",
    "parallel.context_parallel_size",
)


def check_ppo(sections: Sections, problems: Problems) -> None:
    """Everything that PPO needs of the settings, besides what holds for all jobs."""
    check_models(sections, problems)
    check_layout(sections, problems)
    check_dropout(sections, problems)
    check_lengths(sections, problems)
    check_minibatches(sections, problems)


def check_models(sections: Sections, problems: Problems) -> None:
    """Four models come from somewhere."""
    if sections.ppo.reward_model is None and problems.usable("ppo.reward_model"):
        rule = "is needed; name a checkpoint of qwen-megatron reward, such as runs/reward/iter_0001000"
        problems.add("ppo.reward_model", None, rule)
    starts = sections.checkpoint.init_from, sections.ppo.reference_model
    if starts == (None, None) and problems.usable("checkpoint.init_from", "ppo.reference_model"):
        rule = "is needed: policy and reference start from a model that follows instructions; name its checkpoint"
        problems.add("checkpoint.init_from", None, rule)


def check_layout(sections: Sections, problems: Problems) -> None:
    """What generation cannot do, or does not see."""
    parallel = sections.parallel
    refused = {
        "virtual_pipeline_model_parallel_size": (
            parallel.virtual_pipeline_model_parallel_size is not None,
            "generation runs plain pipeline stages; leave it out",
        ),
        "context_parallel_size": (parallel.context_parallel_size > 1, "generation does not split sequences; use 1"),
        "overlap_param_gather": (
            parallel.overlap_param_gather,
            "generation would see weights from before the update; use false",
        ),
        "cuda_graph_impl": (
            parallel.cuda_graph_impl != "none",
            "Megatron-Core keeps one record of graphs, and there are four models; use none",
        ),
        "tp_comm_overlap": (
            parallel.tp_comm_overlap,
            "generation sends other sizes than the buffers are made for; use false",
        ),
    }
    for name, (is_broken, reason) in refused.items():
        if is_broken and problems.usable(f"parallel.{name}"):
            problems.add(f"parallel.{name}", getattr(parallel, name), f"is not for ppo: {reason}")


def check_dropout(sections: Sections, problems: Problems) -> None:
    """With dropout a response has another probability in training than when it was drawn."""
    for name in ("hidden_dropout", "attention_dropout"):
        value = getattr(sections.model, name)
        if value and problems.usable(f"model.{name}"):
            rule = "must be 0 in ppo: ratios compare a token's probability with that of its draw; use 0"
            problems.add(f"model.{name}", value, rule)


def check_lengths(sections: Sections, problems: Problems) -> None:
    """A query has room beside the longest response."""
    longest, whole = sections.ppo.response_length, sections.training.seq_length
    if problems.usable("ppo.response_length", "training.seq_length") and longest >= whole:
        rule = f"must be below training.seq_length({whole}), which holds query and response; use {max(1, whole // 2)}"
        problems.add("ppo.response_length", longest, rule)
    if sections.training.rampup_start_batch_size is not None and problems.usable(RAMP):
        problems.add(RAMP, sections.training.rampup_start_batch_size, "is not for ppo; leave the ramp out")


def check_minibatches(sections: Sections, problems: Problems) -> None:
    """Every minibatch is whole micro-batches of queries on every replica, so that no layout divides them otherwise."""
    if not problems.usable(FULL, "training.micro_batch_size", "ppo.num_minibatches", *LAYOUT):
        return
    full, micro, count = (
        sections.training.global_batch_size,
        sections.training.micro_batch_size,
        sections.ppo.num_minibatches,
    )
    replicas = max(1, sections.parallel.world_size // sections.parallel.replica_size)
    unit = micro * replicas * count
    # That it is no multiple of the first two is told to all jobs.
    if full % unit and full % (micro * replicas) == 0:
        factors = f"micro_batch_size({micro}) x data_parallel_size({replicas}) x ppo.num_minibatches({count}) = {unit}"
        problems.add(FULL, full, f"must be a multiple of {factors}; {nearest_multiples(unit, full)}")
