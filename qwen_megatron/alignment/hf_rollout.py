"""Responses of an exported policy by transformers: the other rollout, slow and plain.

It shows that the interface holds another engine, and that exported weights are the policy's: given the same draws, both
make the same tokens (tests/alignment/test_hf_rollout.py). It runs in one process and knows one folder; training uses
`rollout.PolicyRollout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from qwen_megatron.alignment.rollout import Query, Responses, end_of_turn, requests_of
from qwen_megatron.inference.completion import Request
from qwen_megatron.inference.sampling import Sampling, choose


class HfRollout:
    """Draws one response after the other.

    Args:
        folder: In a format that transformers knows itself, such as Qwen2's; no code in it is run.
        num_tokens: Ids from here on are never drawn.
    """

    def __init__(self, folder: Path, *, num_tokens: int):
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=False)
        self.model = model.eval()
        self.num_tokens = num_tokens

    def generate(self, queries: Sequence[Query], num_responses: int, sampling: Sampling) -> Responses:
        """See `rollout.Rollout`."""
        tokens = [self.response(request) for request in requests_of(queries, num_responses, sampling)]
        end = end_of_turn(sampling)
        return Responses(tokens=tokens, finished=[response[-1] == end for response in tokens])

    @torch.inference_mode()
    def response(self, request: Request) -> list[int]:
        """What follows one query, its end included where it was drawn."""
        sampling, cache = request.sampling, None
        new: list[int] = []
        step = torch.tensor([request.prompt])
        while len(new) < sampling.max_new_tokens:
            output = self.model(step, past_key_values=cache, use_cache=True)
            cache, logits_v = output.past_key_values, output.logits[0, -1, : self.num_tokens].float()
            text = [*request.prompt, *new]
            new.append(choose(logits_v, text, sampling, request.name_of_draws, len(new)).token)
            if new[-1] == end_of_turn(sampling):
                break
            step = torch.tensor([new[-1:]])
        return new
