"""What a step of PPO learns from: the rows of one replica as one large batch, and its way into micro-batches.

Legend: b rows, s positions. Position t belongs to the action that comes after it, token t + 1: the loss mask is 1 where
that token was drawn by the policy, the last one, which ends the turn, among them. A text cut at the longest response
ends with what was drawn; nothing is put in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch

from qwen_megatron.alignment.rollout import Responses
from qwen_megatron.data.batch import Batch
from qwen_megatron.data.preference.batch import END_INDEX

# Marks micro-batches of pretraining text among those of experience.
PRETRAINING = "pretraining_b"


def rows_of(queries: Sequence[Sequence[int]], responses: Responses, seq_length: int) -> Batch:
    """Queries with their responses, padded on the right.

    Args:
        queries: Token ids.
        responses: As many to each query, in the order of the queries.
        seq_length: Tokens a row; none may be longer.
    Returns:
        A row for each response, with the extras `end_index_b` (place of its last token) and `finished_b` (whether it
        ended its turn).
    """
    each = len(responses.tokens) // len(queries)
    tokens_bs = torch.zeros(len(responses.tokens), seq_length, dtype=torch.int64)
    mask_bs, ends = torch.zeros_like(tokens_bs, dtype=torch.float32), []
    for row, response in enumerate(responses.tokens):
        query = queries[row // each]
        end = len(query) + len(response)
        tokens_bs[row, :end] = torch.tensor([*query, *response])
        mask_bs[row, len(query) - 1 : end - 1] = 1.0
        ends.append(end - 1)
    labels_bs = torch.zeros_like(tokens_bs)
    labels_bs[:, :-1] = tokens_bs[:, 1:]
    return Batch(
        tokens_bs=tokens_bs,
        labels_bs=labels_bs,
        loss_mask_bs=mask_bs,
        position_ids_bs=torch.arange(seq_length).expand_as(tokens_bs).contiguous(),
        document_ids_bs=None,
        samples=tuple(range(len(responses.tokens))),
        extras={END_INDEX: torch.tensor(ends), "finished_b": torch.tensor(responses.finished)},
    )


def with_extras(batch: Batch, extras: Mapping[str, torch.Tensor]) -> Batch:
    """The batch with more to learn from."""
    return dataclasses.replace(batch, extras={**batch.extras, **extras})


def pieces(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch cut into batches of so many rows, in their order; it must divide."""
    if len(batch.tokens_bs) % rows:
        raise ValueError(f"{len(batch.tokens_bs)} rows do not divide into pieces of {rows}")
    for start in range(0, len(batch.tokens_bs), rows):
        part = slice(start, start + rows)
        yield Batch(
            tokens_bs=batch.tokens_bs[part],
            labels_bs=batch.labels_bs[part],
            loss_mask_bs=batch.loss_mask_bs[part],
            position_ids_bs=batch.position_ids_bs[part],
            document_ids_bs=None,
            samples=batch.samples[part],
            extras={name: values[part] for name, values in batch.extras.items()},
        )


def weighed(batch: Batch, weight: float) -> Batch:
    """Pretraining text whose tokens weigh so much beside an action; see `policy_loss.PolicyLoss`."""
    marks_b = torch.ones(len(batch.tokens_bs))
    return dataclasses.replace(
        with_extras(batch, {PRETRAINING: marks_b}), loss_mask_bs=batch.loss_mask_bs * torch.tensor(weight)
    )


def is_pretraining(batch: Batch) -> bool:
    """Whether a micro-batch is of pretraining text."""
    return PRETRAINING in batch.extras
