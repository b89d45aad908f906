"""Texts that are generated together, each for as long as it takes: new ones join while others go on.

Legend: b rows, s tokens of a row, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from qwen_megatron.inference.cache import CacheRows, KeyValueCache
from qwen_megatron.inference.completion import FinishReason, Request, Step
from qwen_megatron.inference.grouping import alike
from qwen_megatron.inference.sampling import choose
from qwen_megatron.inference.staged_model import StagedModel
from qwen_megatron.model.attention_context import AttentionContext

# Tokens of prompts that are run at once; longer prompts are run piece after piece.
PREFILL_TOKENS = 4096


@dataclass(kw_only=True)
class Row:
    """A text in the batch; its place in `RunningBatch.rows` is its place in the cache."""

    request: Request
    new: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the whole text."""
        return len(self.request.prompt) + len(self.new)

    @property
    def penalized(self) -> list[int]:
        """Tokens that a repetition penalty makes less likely; none without one, which costs nothing then."""
        return [*self.request.prompt, *self.new] if self.request.sampling.repetition_penalty != 1.0 else []


class RunningBatch:
    """Requests in a key/value cache. On several ranks all must ask for the same, in the same order.

    A text depends on its request alone: rows do not see each other, and draws are named by seed, request and token.

    Args:
        staged: Model.
        num_tokens: Ids from here on are never chosen; at most the vocabulary's rows.
        max_rows: Texts that are run at once; further ones wait.
    """

    def __init__(self, staged: StagedModel, num_tokens: int, max_rows: int):
        self.staged = staged
        self.num_tokens = num_tokens
        self.max_rows = max_rows
        self.cache = KeyValueCache()
        self.waiting: deque[Request] = deque()
        self.rows: list[Row] = []

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.rows and not self.waiting

    def add(self, request: Request) -> None:
        """Queues a request; the first step with room for it runs its prompt."""
        self.waiting.append(request)

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Forgets a request, with its part of the cache; one that is not there is none."""
        self.waiting = deque(request for request in self.waiting if request.number != number)
        for place, row in enumerate(self.rows):
            if row.request.number == number:
                self.remove([place])
                return

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """One token more of every text; of new ones the first."""
        joining = [self.waiting.popleft() for _ in range(min(self.max_rows - len(self.rows), len(self.waiting)))]
        going_on = len(self.rows)
        steps = self.decode() if going_on else []
        for places in alike([len(request.prompt) for request in joining], PREFILL_TOKENS):
            steps += self.prefill([joining[place] for place in places])
        self.remove([place for place, step in enumerate(steps) if step.finish_reason is not None])
        return steps

    def decode(self) -> list[Step]:
        """A token more of every row."""
        tokens_bs = torch.tensor([[(row.new or row.request.prompt)[-1]] for row in self.rows])
        context = AttentionContext(
            cache=CacheRows(self.cache, 0),
            offsets=tuple(row.length - 1 for row in self.rows),
            text_lengths=tuple(len(row.request.prompt) for row in self.rows),
        )
        hidden_bsh = self.staged.hidden(tokens_bs.to(self.staged.device), context)
        return self.advance(self.rows, None if hidden_bsh is None else hidden_bsh[:, 0])

    def prefill(self, requests: list[Request]) -> list[Step]:
        """Runs prompts into new rows, shorter ones padded on the right: what comes later is seen by nothing before."""
        first_row, lengths = len(self.rows), [len(request.prompt) for request in requests]
        rows = [Row(request=request) for request in requests]
        longest = max(lengths)
        tokens_bs = torch.zeros(len(requests), longest, dtype=torch.int64)
        for row, request in enumerate(requests):
            tokens_bs[row, : lengths[row]] = torch.tensor(request.prompt)
        tokens_bs = tokens_bs.to(self.staged.device)
        size = max(1, PREFILL_TOKENS // len(requests))
        last_bh: list[torch.Tensor | None] = [None] * len(requests)
        for start in range(0, longest, size):
            context = AttentionContext(
                cache=CacheRows(self.cache, first_row),
                offsets=(start,) * len(requests),
                text_lengths=tuple(lengths),
            )
            hidden_bsh = self.staged.hidden(tokens_bs[:, start : start + size], context)
            for row, length in enumerate(lengths):
                if hidden_bsh is not None and start < length <= start + size:
                    last_bh[row] = hidden_bsh[row, length - 1 - start]
        self.rows += rows
        known = [hidden_h for hidden_h in last_bh if hidden_h is not None]
        return self.advance(rows, torch.stack(known) if known else None)

    def advance(self, rows: list[Row], hidden_bh: torch.Tensor | None) -> list[Step]:
        """Chooses the next token of rows from the hidden states of their last ones."""
        chosen = None
        if hidden_bh is not None:
            # Chosen on the CPU, where a draw costs no launch for each of its small steps; each rank for its rows.
            logits_bv = self.staged.logits(hidden_bh)[:, : self.num_tokens]
            chosen = torch.zeros(len(rows), 2, dtype=torch.float64)
            group = self.staged.groups.tp
            own = range(group.rank(), len(rows), group.size())
            for place, logits_v in zip(own, logits_bv[own.start :: own.step].cpu(), strict=True):
                row = rows[place]
                draw = choose(logits_v, row.penalized, row.request.sampling, row.request.name_of_draws, len(row.new))
                chosen[place, 0], chosen[place, 1] = draw.token, draw.log_probability
        chosen = self.staged.sum_over_ranks(chosen, (len(rows), 2))
        return [grown(row, int(token), value) for row, (token, value) in zip(rows, chosen.tolist(), strict=True)]

    def remove(self, places: list[int]) -> None:
        """Takes rows out; the last ones move into their places."""
        for place in sorted(places, reverse=True):
            last = self.rows.pop()
            if place < len(self.rows):
                self.cache.move(len(self.rows), place, last.length)
                self.rows[place] = last
        if places:
            self.cache.keep(len(self.rows))


def grown(row: Row, token: int, log_probability: float) -> Step:
    """The row with its new token, and what that means for it."""
    sampling = row.request.sampling
    if token in (sampling.stop_token_ids or ()):
        return Step(
            number=row.request.number, token=None, log_probability=log_probability, finish_reason=FinishReason.STOP
        )
    row.new.append(token)
    reason = FinishReason.LENGTH if len(row.new) >= sampling.max_new_tokens else None
    return Step(number=row.request.number, token=token, log_probability=log_probability, finish_reason=reason)
