"""Rewards of the dialogues of a corpus, from a model in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from data_tools.chat.chat_corpus import ChatCorpus
from qwen_megatron.alignment.pairwise_loss import rewards_at
from qwen_megatron.data.chat_blend import checked_document
from qwen_megatron.data.preference.batch import END_INDEX, scored_batch
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.qwen_model import QwenModel

ROWS_AT_ONCE = 8


@torch.inference_mode()
def rewards_of(model: QwenModel, corpus: ChatCorpus, documents: Sequence[int]) -> Iterator[float]:
    """The reward of each document, read at the end of its last answer.

    Args:
        model: With a scalar head, on one rank, in evaluation mode.
        corpus: Of dialogues or pairs.
        documents: Their numbers.
    Raises:
        DataError: if a file is damaged, or an id is not in the model's vocabulary.
    """
    device = next(model.parameters()).device
    for start in range(0, len(documents), ROWS_AT_ONCE):
        numbers = documents[start : start + ROWS_AT_ONCE]
        dialogues = [
            checked_document(corpus, str(corpus.prefix), number, model.num_tokens_in_vocabulary) for number in numbers
        ]
        batch = scored_batch(
            dialogues,
            numbers,
            max(map(len, dialogues)),
            ends_of_turn=[corpus.end_of_turn] * len(numbers),
            corpora=[0] * len(numbers),
        )
        scalars_bs = model(
            batch.tokens_bs.to(device), batch.position_ids_bs.to(device), None, HeadRequest(output=Output.SCALARS)
        )
        yield from rewards_at(scalars_bs, batch.extras[END_INDEX].to(device)).tolist()
