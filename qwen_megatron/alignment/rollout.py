"""Responses of a policy while it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.inference.completion import FinishReason, Request
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.inference.staged_model import StagedModel
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.layer_spec import FUSED_NAMES
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.train.trainable import Trainable


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is responded to.

    Attributes:
        number: Names its draws: a response depends on seed, number and place among the query's responses alone.
        tokens: Ids, at least one.
    """

    number: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Responses:
    """What a policy said; all responses to the first query come first.

    Attributes:
        tokens: Ids of each, the one that ends the turn included where it was drawn.
        finished: Whether it was; else the response has the greatest length.
    """

    tokens: list[list[int]]
    finished: list[bool]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [len(response) for response in self.tokens]


class Rollout(Protocol):
    """Makes responses. Their probabilities are not asked for: what is learned from are the trainer's own."""

    def generate(self, queries: Sequence[Query], num_responses: int, sampling: Sampling) -> Responses:
        """Draws responses.

        Args:
            queries: The same on all ranks of a replica.
            num_responses: To each.
            sampling: How; its one stop token ends a turn, and belongs to the response.
        """


def requests_of(queries: Sequence[Query], num_responses: int, sampling: Sampling) -> list[Request]:
    """A request for each response, whose draws are named by query and sample."""
    return [
        Request(
            number=place * num_responses + sample,
            prompt=query.tokens,
            sampling=sampling,
            draws=query.number * num_responses + sample,
        )
        for place, query in enumerate(queries)
        for sample in range(num_responses)
    ]


def end_of_turn(sampling: Sampling) -> int:
    """The one stop token."""
    if sampling.stop_token_ids is None or len(sampling.stop_token_ids) != 1:
        raise ValueError(f"a response ends with one token, not with {sampling.stop_token_ids}")
    return sampling.stop_token_ids[0]


class PolicyRollout:
    """Our generator on the policy's own weights. Collective over the ranks of a replica; replicas go at their own pace.

    Generation wants a model without sequence parallelism and without the trainer's wrappers. It gets a second one,
    whose parameters lie where the policy's lie: no copy is made, and each update is there at once.

    Args:
        policy: What is trained.
        config: Layout and precision.
        num_tokens: Ids from here on are never drawn; at most the vocabulary's rows.
        max_rows: Responses that are made at once.
    """

    def __init__(self, policy: Trainable, config: ResolvedConfig, *, num_tokens: int, max_rows: int):
        self.timers = policy.timers
        self.staged = StagedModel(alias_of(policy, config), policy.groups)
        self.num_tokens = min(num_tokens, self.staged.vocab_size)
        self.max_rows = max_rows

    def generate(self, queries: Sequence[Query], num_responses: int, sampling: Sampling) -> Responses:
        """See `Rollout`."""
        end = end_of_turn(sampling)
        batch = RunningBatch(self.staged, self.num_tokens, self.max_rows)
        requests = requests_of(queries, num_responses, sampling)
        for request in requests:
            batch.add(request)
        responses = Responses(tokens=[[] for _ in requests], finished=[False] * len(requests))
        while not batch.is_done:
            # Entered for each token: the watchdog sees that the run moves.
            with self.timers.enter("rollout"):
                steps = batch.step()
            for step in steps:
                responses.tokens[step.number].append(end if step.token is None else step.token)
                if step.finish_reason is FinishReason.STOP:
                    responses.finished[step.number] = True
        return responses


def alias_of(policy: Trainable, config: ResolvedConfig) -> QwenModel:
    """A model for generation over the memory of a policy's weights, in evaluation mode."""
    (source,) = policy.models
    parallel = config.parallel
    model = dataclasses.replace(policy.model, implementation="torch", hidden_dropout=0.0, attention_dropout=0.0)
    alias = unwrapped(
        build_model(
            model,
            policy.groups,
            precision=config.training.precision,
            layers_in_first_stage=parallel.num_layers_in_first_pipeline_stage,
            layers_in_last_stage=parallel.num_layers_in_last_pipeline_stage,
        )
    )
    # By the names of torch's kernels, which the alias runs on: Transformer Engine's linears own the norms before them.
    weights = {unfused_name(name): weight for name, weight in source.named_parameters()}
    for name, parameter in alias.named_parameters():
        parameter.data = weights[name].data
        parameter.requires_grad_(False)
    return alias.eval()


def unfused_name(name: str) -> str:
    """A parameter's name where norms stand alone."""
    for alone, fused in FUSED_NAMES.items():
        name = name.replace(fused, alone)
    return name
