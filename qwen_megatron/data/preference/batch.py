"""Dialogues as rows of their own, each with the place at which its reward is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data_tools.chat.rendered import Rendered
from qwen_megatron.data.batch import Batch

END_INDEX = "end_index_b"
CORPUS = "corpus_b"
# Of a filler row.
NOWHERE = -1


def reward_index(dialogue: Rendered, end_of_turn: int | None) -> int:
    """The place at which a dialogue's reward is read: the end of its last answer.

    Whatever comes after it, a line end, padding, a question without an answer, has no say; that the token which ends a
    turn stands in every turn does not matter.

    Args:
        dialogue: With the answer's tokens as targets.
        end_of_turn: Token that ends a turn; None if there is none: then it is the last target.
    Returns:
        The last target that ends a turn; the last target if none does; the last token if there is no target.
    """
    learned = dialogue.targets
    if end_of_turn is not None and (learned & (dialogue.tokens == end_of_turn)).any():
        learned = learned & (dialogue.tokens == end_of_turn)
    places = np.flatnonzero(learned)
    return int(places[-1]) if len(places) else len(dialogue) - 1


def scored_batch(
    dialogues: Sequence[Rendered | None],
    samples: Sequence[object | None],
    seq_length: int,
    *,
    ends_of_turn: Sequence[int | None],
    corpora: Sequence[int],
) -> Batch:
    """A row for each dialogue, filled up on the right.

    Args:
        dialogues: Each at most `seq_length` tokens; None makes a filler row.
        samples: Where the rows come from.
        seq_length: Tokens a row.
        ends_of_turn: Of each row, as for `reward_index`.
        corpora: Number of each row's corpus.
    Returns:
        A batch with the extras `end_index_b`, -1 for filler rows, and `corpus_b`, int64 [b].
    """
    tokens_bs = torch.zeros(len(dialogues), seq_length, dtype=torch.int64)
    ends = [NOWHERE] * len(dialogues)
    for row, dialogue in enumerate(dialogues):
        if dialogue is not None:
            tokens_bs[row, : len(dialogue)] = torch.from_numpy(dialogue.tokens)
            ends[row] = reward_index(dialogue, ends_of_turn[row])
    mask_bs = torch.zeros(len(dialogues), seq_length)
    for row, end in enumerate(ends):
        if end != NOWHERE:
            mask_bs[row, end] = 1.0
    return Batch(
        tokens_bs=tokens_bs,
        labels_bs=torch.zeros_like(tokens_bs),
        loss_mask_bs=mask_bs,
        position_ids_bs=torch.arange(seq_length).expand(len(dialogues), -1).contiguous(),
        # Causal attention: nothing that is read sees the padding after it.
        document_ids_bs=None,
        samples=tuple(samples),
        extras={END_INDEX: torch.tensor(ends), CORPUS: torch.tensor(list(corpora))},
    )


def pair_batch(
    pairs: Sequence[tuple[Rendered, Rendered] | None],
    samples: Sequence[object | None],
    seq_length: int,
    *,
    ends_of_turn: Sequence[int | None],
    corpora: Sequence[int],
) -> Batch:
    """Two rows a pair: 2k the chosen dialogue of the k-th, 2k + 1 the rejected one.

    Args:
        pairs: None makes two filler rows.
        samples: Where each pair comes from.
        seq_length, ends_of_turn, corpora: As for `scored_batch`, of each pair.
    """
    return scored_batch(
        [side for pair in pairs for side in (pair or (None, None))],
        samples,
        seq_length,
        ends_of_turn=[end for end in ends_of_turn for _ in range(2)],
        corpora=[corpus for corpus in corpora for _ in range(2)],
    )
