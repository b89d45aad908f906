"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class TrainState:
    """Counters of a run; with the weights, the optimizer and the configuration they are everything it needs to go on.

    Attributes:
        iteration: Optimizer steps done.
        consumed_samples: Training samples used; the data cursor, independent of the layout.
        consumed_tokens: Training tokens used.
    """

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0

    def advance(self, samples: int, tokens: int) -> None:
        """Counts one step."""
        self.iteration += 1
        self.consumed_samples += samples
        self.consumed_tokens += tokens
