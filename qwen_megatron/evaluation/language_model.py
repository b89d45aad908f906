"""What evaluation asks of a model: completions of prompts, and log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from qwen_megatron.evaluation.codec import Codec

Ids = list[int]
Request = TypeVar("Request")
Response = TypeVar("Response")
# Told how many requests are done.
Advance = Callable[[int], None]


class Scored(Protocol):
    """What is known of a continuation."""

    @property
    def log_probability(self) -> float:
        """Of the whole continuation, in nats."""
        ...

    @property
    def is_greedy(self) -> bool:
        """Whether every token is the most likely one."""
        ...


class LanguageModel(Protocol):
    """A model that can be evaluated, in token ids."""

    def complete(self, prompts: Sequence[Ids], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """The greedy completion of each prompt, without the stop text that ended it."""
        ...

    def score(self, rows: Sequence[tuple[Ids, Ids]]) -> Sequence[Scored]:
        """Log-probabilities of continuations, (context, continuation) each; neither is empty."""
        ...


@dataclass
class TextModel:
    """A model of token ids together with its codec: prompts of text in, and not longer than the model reads.

    Attributes:
        model: Answers in the order of the requests.
        codec: Text to ids and back.
        max_length: Tokens of a prompt and its completion together; longer prompts lose their beginning.
        batch_size: Requests given to the model at once.
        num_cut: Prompts that lost their beginning so far.
    """

    model: LanguageModel
    codec: Codec
    max_length: int
    batch_size: int = 16
    num_cut: int = 0

    def complete(
        self, prompts: Sequence[Ids], max_new_tokens: int, stop: Sequence[str], advance: Advance = lambda amount: None
    ) -> list[str]:
        """The greedy completion of each prompt.

        Args:
            prompts: Token ids, at least one each.
            max_new_tokens: Tokens of a completion at most.
            stop: Texts that end a completion, which are left out.
            advance: Told after each batch.
        Raises:
            ValueError: if a completion leaves no room for a prompt.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                f"completions of {max_new_tokens} tokens leave no room for a prompt in {self.max_length}; "
                "give a larger --max-length"
            )
        return self._in_batches(
            [self._cut(prompt, room) for prompt in prompts],
            lambda batch: self.model.complete(batch, max_new_tokens, stop),
            len,
            advance,
        )

    def score(self, rows: Sequence[tuple[Ids, Ids]], advance: Advance = lambda amount: None) -> list[Scored]:
        """Log-probability of each continuation after its context.

        Args:
            rows: (context, continuation), neither empty.
            advance: Told after each batch.
        """
        cut = [(self._cut(context, max(1, self.max_length + 1 - len(new))), new) for context, new in rows]
        return self._in_batches(cut, self.model.score, lambda row: len(row[0]) + len(row[1]), advance)

    def _cut(self, prompt: Ids, room: int) -> Ids:
        if len(prompt) <= room:
            return prompt
        self.num_cut += 1
        return prompt[-room:]

    def _in_batches(
        self,
        requests: Sequence[Request],
        answer: Callable[[list[Request]], Sequence[Response]],
        size: Callable[[Request], int],
        advance: Advance,
    ) -> list[Response]:
        """Longest first: requests of a length share a batch, and what does not fit in memory is seen at once."""
        order = sorted(range(len(requests)), key=lambda number: -size(requests[number]))
        answers: dict[int, Response] = {}
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            answers |= zip(numbers, answer([requests[number] for number in numbers]), strict=True)
            advance(len(numbers))
        return [answers[number] for number in range(len(requests))]
