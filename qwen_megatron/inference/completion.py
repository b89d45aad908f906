"""What is asked of a generator and what comes back."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from qwen_megatron.inference.sampling import Sampling


class FinishReason(enum.StrEnum):
    """Why a text ended."""

    STOP = "stop"
    """A stop token or a stop text came."""
    LENGTH = "length"
    """It has `max_new_tokens`."""
    CANCELLED = "cancelled"
    """Nobody wanted the rest."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to go on with.

    Attributes:
        number: Names it among those of its batch.
        prompt: Token ids, at least one.
        sampling: How it goes on.
        draws: With the seed it fixes the draws; None for `number`.
    """

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    draws: int | None = None

    @property
    def name_of_draws(self) -> int:
        """What the draws are named by, beside the seed."""
        return self.number if self.draws is None else self.draws


@dataclass(frozen=True, kw_only=True)
class Step:
    """A new token of a request.

    Attributes:
        number: Of the request.
        token: Its id; None where a stop token came, which belongs to no text.
        log_probability: Under the model itself, in nats, before temperature and cuts.
        finish_reason: Where it was the last.
    """

    number: int
    token: int | None
    log_probability: float
    finish_reason: FinishReason | None


@dataclass(kw_only=True)
class Completion:
    """What follows a prompt.

    Attributes:
        tokens: New token ids; a stop token is left out.
        log_probabilities: Of each, in nats, under the model itself: before temperature, penalty and cuts.
        text: Their text, up to a stop text; None without a tokenizer.
        finish_reason: None while it goes on.
    """

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    text: str | None = None
    finish_reason: FinishReason | None = None
