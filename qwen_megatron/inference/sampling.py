"""Which token comes next: temperature, top-k, top-p, repetition penalty; draws that depend on nothing but their name.

Legend: v vocabulary rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_tools.settings.words import show
from qwen_megatron.errors import ConfigError

# So many of the most likely tokens are looked at first where the least likely are cut off.
FIRST_LOOK = 256
# Where they do not reach top-p, all tokens are counted into classes of likeness instead of being sorted: so many
# classes to a factor of e, over 32 of them; what is less likely than that shares the last one.
CLASSES_A_NAT = 128
CLASSES = 32 * CLASSES_A_NAT


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a text goes on.

    Attributes:
        max_new_tokens: Tokens to add at most.
        temperature: Logits are divided by it; 0 takes the most likely token (the lowest id of several).
        top_k: Draw from so many of the most likely tokens; 0 for all.
        top_p: Draw from the most likely tokens whose probabilities first reach this sum.
        repetition_penalty: Logits of tokens that are in the text already are divided by it where they are positive,
            multiplied where not; 1 does nothing (Keskar et al. 2019, arXiv 1909.05858).
        seed: With the number of a request and of its token it fixes each draw, whatever else runs.
        stop_token_ids: End the text; left out of it. None for those that end a document of the model, where known.
        stop: Texts that end it; left out of it. They need a tokenizer.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what would mean nothing.

        Raises:
            ConfigError: with every problem.
        """
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "must be at least 1"),
            ("temperature", 0.0 <= self.temperature <= 100.0, "must be between 0 (the most likely token) and 100"),
            ("top_k", self.top_k >= 0, "must be at least 0, which takes all tokens"),
            ("top_p", 0.0 < self.top_p <= 1.0, "must be above 0 and at most 1, which takes all tokens"),
            (
                "repetition_penalty",
                0.0 < self.repetition_penalty <= 100.0,
                "must be above 0 and at most 100; 1 is none",
            ),
            ("stop", all(self.stop), "must hold no empty text"),
        )
        problems = [f"{name}={show(getattr(self, name))}: {rule}" for name, holds, rule in rules if not holds]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Draw:
    """A token and the logarithm of its probability under the model itself, before temperature and cuts."""

    token: int
    log_probability: float


def choose(logits_v: torch.Tensor, text: Sequence[int], sampling: Sampling, request: int, number: int) -> Draw:
    """The next token of one text.

    Args:
        logits_v: [v] fp32, of the tokens that may come; not changed.
        text: Prompt and new tokens, for the repetition penalty.
        sampling: How.
        request: Number of the request.
        number: Of the new token in its text, from 0.
    """
    total = logits_v.logsumexp(dim=0)
    scores_v = penalized(logits_v, text, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        token = int(scores_v.argmax())
    else:
        token = drawn(scores_v / sampling.temperature, sampling, uniform(sampling.seed, request, number))
    return Draw(token, float(logits_v[token] - total))


def penalized(logits_v: torch.Tensor, text: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits with those of tokens in the text made smaller."""
    if penalty == 1.0:
        return logits_v
    seen = torch.tensor(sorted({token for token in text if token < len(logits_v)}), device=logits_v.device)
    values = logits_v[seen]
    return logits_v.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))


def drawn(scores_v: torch.Tensor, sampling: Sampling, share: float) -> int:
    """The token at a share of the kept probability, the most likely ones first where some are cut off.

    Args:
        scores_v: [v], logits.
        sampling: `top_k` and `top_p`.
        share: In [0, 1).
    """
    size = len(scores_v)
    if 0 < sampling.top_k < size:
        scores, ids = scores_v.topk(sampling.top_k)
        # Probabilities are those among the tokens that top-k leaves.
        sums = scores.softmax(dim=0).double().cumsum(dim=0)
    elif sampling.top_p == 1.0:
        return place_of(share, scores_v.softmax(dim=0).double().cumsum(dim=0))
    else:
        total = scores_v.logsumexp(dim=0)
        scores, ids = scores_v.topk(min(FIRST_LOOK, size))
        sums = (scores - total).double().exp().cumsum(dim=0)
        if len(ids) < size and float(sums[-1]) < sampling.top_p:
            return drawn_by_classes(scores_v, total, sampling.top_p, share)
    if sampling.top_p < 1.0:
        kept = min(int((sums < sampling.top_p).sum()) + 1, len(sums))
        sums, ids = sums[:kept], ids[:kept]
    return int(ids[place_of(share, sums)])


def drawn_by_classes(scores_v: torch.Tensor, total: torch.Tensor, top_p: float, share: float) -> int:
    """What sorting all tokens would draw, in time linear in the vocabulary: only two classes are sorted.

    A model that knows little needs tens of thousands of tokens to reach top-p; sorting them took ten times as long as
    the rest of its step.

    Args:
        scores_v: [v], logits.
        total: Logarithm of the sum of their exponentials.
        top_p: Below 1.
        share: In [0, 1), of the kept probability.
    """
    class_v = ((scores_v.max() - scores_v) * CLASSES_A_NAT).clamp(max=CLASSES - 1).long()
    sums = torch.bincount(class_v, (scores_v - total).double().exp(), minlength=CLASSES).cumsum(dim=0)

    def place(target: float, passes: bool) -> tuple[int, float]:
        """The token where the rising sum reaches (or passes) a target, and the sum with it."""
        number = min(int(torch.searchsorted(sums, target, right=passes)), int(class_v.max()))
        ids = (class_v == number).nonzero().flatten()
        scores, order = scores_v[ids].sort(descending=True, stable=True)
        before = float(sums[number - 1]) if number else 0.0
        inner = (scores - total).double().exp().cumsum(dim=0) + before
        at = min(int(torch.searchsorted(inner, target, right=passes)), len(ids) - 1)
        return int(ids[order[at]]), float(inner[at])

    _, kept = place(top_p, passes=False)
    return place(share * kept, passes=True)[0]


def place_of(share: float, sums: torch.Tensor) -> int:
    """Where a share of the last of rising sums falls."""
    return min(int(torch.searchsorted(sums, share * float(sums[-1]), right=True)), len(sums) - 1)


def uniform(seed: int, request: int, number: int) -> float:
    """A number in [0, 1) that belongs to a token of a request: the same in every batch and on every layout."""
    name = f"sampling {seed} {request} {number}".encode()
    return (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 11) * 2.0**-53
