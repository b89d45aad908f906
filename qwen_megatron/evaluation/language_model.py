"""What evaluation asks of a model: completions of prompts, and log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwen_megatron.errors import ConfigError
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.inference.scoring import Score
from qwen_megatron.inference.vocabulary import Vocabulary

Ids = list[int]
# Told how many more requests are done.
Advance = Callable[[int], None]


def unseen(amount: int) -> None:
    """Tells nobody."""


class LanguageModel(Protocol):
    """A model that can be evaluated, in token ids."""

    def complete(
        self, prompts: Sequence[Ids], max_new_tokens: int, stop: Sequence[str], is_chat: bool, advance: Advance
    ) -> list[str]:
        """The greedy completion of each prompt, without the stop text or end of turn that ended it."""
        ...

    def score(self, rows: Sequence[tuple[Ids, Ids]], advance: Advance) -> list[Score]:
        """Scores of continuations, (context, continuation) each; neither is empty."""
        ...


class GeneratorModel:
    """A generator as evaluation asks it. On several ranks all must ask the same.

    Args:
        generator: With a vocabulary.
    """

    def __init__(self, generator: Generator) -> None:
        assert generator.vocabulary is not None
        self.generator = generator
        self.vocabulary = generator.vocabulary

    def complete(
        self, prompts: Sequence[Ids], max_new_tokens: int, stop: Sequence[str], is_chat: bool, advance: Advance
    ) -> list[str]:
        """See `LanguageModel.complete`."""
        turns = self.vocabulary.chat_ids or () if is_chat else ()
        sampling = Sampling(
            max_new_tokens=max_new_tokens, stop=tuple(stop), stop_token_ids=(*self.vocabulary.end_ids, *turns)
        )
        texts = [""] * len(prompts)
        # The longest first: if memory runs out, it does so at once.
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for piece in self.generator.stream([prompts[number] for number in order], sampling):
            texts[order[piece.index]] += piece.text
            advance(piece.finish_reason is not None)
        return texts

    def score(self, rows: Sequence[tuple[Ids, Ids]], advance: Advance) -> list[Score]:
        """See `LanguageModel.score`."""
        return self.generator.score(rows, advance)


@dataclass
class TextModel:
    """A model of token ids together with its vocabulary: no prompt is longer than the model reads.

    Attributes:
        model: Answers in the order of the requests.
        vocabulary: Text to ids and back.
        max_length: Tokens of a prompt and its completion together; longer prompts lose their beginning.
        num_cut: Prompts that lost their beginning so far.
    """

    model: LanguageModel
    vocabulary: Vocabulary
    max_length: int
    num_cut: int = 0

    def complete(
        self,
        prompts: Sequence[Ids],
        max_new_tokens: int,
        stop: Sequence[str],
        *,
        is_chat: bool = False,
        advance: Advance = unseen,
    ) -> list[str]:
        """The greedy completion of each prompt.

        Args:
            prompts: Token ids, at least one each.
            max_new_tokens: Tokens of a completion at most.
            stop: Texts that end a completion, which are left out.
            is_chat: Whether marks of ChatML end it too.
            advance: Told as prompts are done.
        Raises:
            ConfigError: if a completion leaves no room for a prompt.
        """
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"--max-length={self.max_length}: completions of {max_new_tokens} tokens leave no room for a prompt; "
                f"give at least {max_new_tokens + 1}, and more than the longest prompt needs"
            )
        cut = [self._cut(prompt, room) for prompt in prompts]
        return self.model.complete(cut, max_new_tokens, stop, is_chat, advance)

    def score(self, rows: Sequence[tuple[Ids, Ids]], *, advance: Advance = unseen) -> list[Score]:
        """The score of each continuation after its context.

        Args:
            rows: (context, continuation), neither empty.
            advance: Told as rows are done.
        """
        cut = [(self._cut(context, max(1, self.max_length + 1 - len(new))), new) for context, new in rows]
        return self.model.score(cut, advance)

    def _cut(self, prompt: Ids, room: int) -> Ids:
        if len(prompt) <= room:
            return prompt
        self.num_cut += 1
        return prompt[-room:]
