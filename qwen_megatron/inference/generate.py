"""Greedy continuation of a prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from data_tools.tokenizer.qwen import END_OF_DOCUMENT, NUM_TOKENS
from qwen_megatron.inference.loading import logits
from qwen_megatron.model.qwen_model import QwenModel


def generate_greedy(
    model: QwenModel, prompt: Sequence[int], max_new_tokens: int, stop: Collection[int] = (END_OF_DOCUMENT,)
) -> list[int]:
    """The most likely token, again and again; the whole sequence is run each time.

    Ids that the tokenizer never makes are left out.

    Args:
        model: On one rank, in evaluation mode.
        prompt: At least one token id.
        max_new_tokens: Tokens to add at most.
        stop: Ids that end the text; they are not returned.
    Returns:
        The new token ids.
    Raises:
        ValueError: if the prompt is empty.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens; give at least one character")
    device = next(model.parameters()).device
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        next_v = logits(model, torch.tensor([tokens], device=device))[0, -1, :NUM_TOKENS]
        token = int(next_v.argmax())
        if token in stop:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
