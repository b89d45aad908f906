"""Generation for programs: prompts in, completions out; and how likely given texts are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from qwen_megatron.errors import DataError
from qwen_megatron.inference.completion import Completion, Request
from qwen_megatron.inference.extension import Extension, extend
from qwen_megatron.inference.progress import Piece, Progress
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.inference.scoring import Score, score_rows
from qwen_megatron.inference.staged_model import StagedModel
from qwen_megatron.inference.vocabulary import Vocabulary
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups

# Texts that are generated at once, if nothing else is said.
MAX_ROWS = 32


class Generator:
    """A model that goes on with texts. On several ranks all call the same methods with the same arguments.

    Args:
        model: This rank's part, in evaluation mode.
        groups: Layout.
        vocabulary: Ids to text and back; None for models of unknown tokens: then prompts are ids, and all rows of
            the embedding may be chosen.
        max_rows: Texts that are generated at once.
        native_length: Tokens of the context it was trained on, where its configuration says otherwise.
    """

    def __init__(
        self,
        model: QwenModel,
        groups: Groups,
        vocabulary: Vocabulary | None = None,
        *,
        max_rows: int = MAX_ROWS,
        native_length: int | None = None,
    ):
        self.staged = StagedModel(model, groups)
        self.vocabulary = vocabulary
        self.num_tokens = self.staged.vocab_size if vocabulary is None else vocabulary.num_tokens
        self.max_rows = max_rows
        self.native_length = native_length

    def read_with(self, extension: Extension | None, *, longest: int, windows: tuple[int, ...] | None = None) -> None:
        """Sets how texts beyond the native length are read; see `inference.extension.extend`."""
        extend(self.staged.model, extension, longest=longest, native_length=self.native_length, windows=windows)

    def generate(
        self, prompts: Sequence[Sequence[int] | str], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """What follows each prompt; a prompt's completion does not depend on the others.

        Args:
            prompts: Token ids, or texts where there is a vocabulary.
            sampling: Of all of them, or of each; None for greedy, up to 64 tokens.
        Raises:
            DataError: if a prompt is empty or has an id that the model does not know.
        """
        completions = [Completion() for _ in prompts]
        for _ in self.stream(prompts, sampling, completions):
            pass
        return completions

    def stream(
        self,
        prompts: Sequence[Sequence[int] | str],
        sampling: Sampling | Sequence[Sampling] | None = None,
        completions: list[Completion] | None = None,
        *,
        first_draw: int = 0,
    ) -> Iterator[Piece]:
        """The same, token by token; a stream that is closed gives up its texts.

        Args:
            prompts, sampling: As for `generate`.
            completions: One for each prompt, filled as the stream goes on.
            first_draw: Names the draws of the first prompt, with the seed; the next number those of the next.
        """
        if completions is None:
            completions = [Completion() for _ in prompts]
        each = [sampling or Sampling()] * len(prompts) if not isinstance(sampling, Sequence) else list(sampling)
        batch = RunningBatch(self.staged, self.num_tokens, self.max_rows)
        progress = []
        for index, (prompt, settings) in enumerate(zip(prompts, each, strict=True)):
            batch.add(self.request(index, prompt, settings, draws=first_draw + index))
            progress.append(Progress(index, self.vocabulary, settings.stop, completions[index]))
        while not batch.is_done:
            for step in batch.step():
                piece = progress[step.number].take(step)
                if piece.finish_reason is not None:
                    # After a stop text the batch would go on with it.
                    batch.cancel(step.number)
                yield piece

    def request(
        self, number: int, prompt: Sequence[int] | str, sampling: Sampling, *, draws: int | None = None
    ) -> Request:
        """A request whose ids are checked and whose ends are known.

        Raises:
            DataError: as `ids_of`; if a stop text is given and the tokens are not known.
        """
        if sampling.stop and self.vocabulary is None:
            raise DataError("stop texts need a tokenizer; give stop_token_ids")
        if sampling.stop_token_ids is None:
            ends = self.vocabulary.end_ids if self.vocabulary else ()
            sampling = dataclasses.replace(sampling, stop_token_ids=ends)
        return Request(number=number, prompt=self.ids_of(prompt, number), sampling=sampling, draws=draws)

    def score(
        self,
        rows: Sequence[tuple[Sequence[int], Sequence[int]]],
        advance: Callable[[int], None] = lambda amount: None,
    ) -> list[Score]:
        """How likely each continuation is after its context.

        Args:
            rows: Token ids of context and of continuation, at least one each.
            advance: Told how many rows are done.
        Raises:
            DataError: if one is empty or an id is not known to the model.
        """
        checked = [(self.ids_of(context, index), self.ids_of(new, index)) for index, (context, new) in enumerate(rows)]
        return score_rows(self.staged, checked, advance)

    def ids_of(self, prompt: Sequence[int] | str, index: int) -> tuple[int, ...]:
        """Token ids of a prompt, held against the model's vocabulary.

        Raises:
            DataError: naming the prompt.
        """
        if isinstance(prompt, str):
            if self.vocabulary is None:
                raise DataError(f"prompt {index} is text, but the model's tokens are not known; give ids")
            prompt = self.vocabulary.encode(prompt)
        ids = tuple(int(token) for token in prompt)
        if not ids:
            raise DataError(f"prompt {index} has no tokens; give at least one")
        wrong = next((token for token in ids if not 0 <= token < self.staged.vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"prompt {index}: id {wrong} is not in the model's vocabulary (0 to {self.staged.vocab_size - 1})"
            )
        return ids
