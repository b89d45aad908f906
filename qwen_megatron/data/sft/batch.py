"""Dialogues side by side in the rows of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data_tools.chat.rendered import Rendered
from qwen_megatron.data.batch import Batch


def packed_batch(rows: Sequence[Sequence[Rendered]], samples: Sequence[object | None], seq_length: int) -> Batch:
    """Labels are shifted in each dialogue, then dialogues are put side by side; what is left of a row is one document.

    Args:
        rows: Dialogues of each row, together at most `seq_length` tokens, the last of each not counted; none for a
            filler row.
        samples: Where each row comes from.
        seq_length: Tokens a row.
    """
    tokens_bs = torch.zeros(len(rows), seq_length, dtype=torch.int64)
    labels_bs, documents_bs = torch.zeros_like(tokens_bs), torch.zeros_like(tokens_bs)
    mask_bs = torch.zeros(len(rows), seq_length)
    for row, dialogues in enumerate(rows):
        start = 0
        for number, dialogue in enumerate(dialogues):
            stop = start + len(dialogue) - 1
            tokens = torch.from_numpy(dialogue.tokens)
            tokens_bs[row, start:stop] = tokens[:-1]
            labels_bs[row, start:stop] = tokens[1:]
            mask_bs[row, start:stop] = torch.from_numpy(dialogue.targets)[1:].float()
            documents_bs[row, start:stop] = number
            start = stop
        documents_bs[row, start:] = len(dialogues)
    return Batch(
        tokens_bs=tokens_bs,
        labels_bs=labels_bs,
        loss_mask_bs=mask_bs,
        position_ids_bs=torch.arange(seq_length).expand(len(rows), -1).contiguous(),
        document_ids_bs=documents_bs,
        samples=tuple(samples),
    )
