"""What one record becomes in a corpus of dialogues, pairs or prompts, or why it becomes nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data_tools.chat.chatml import ChatML
from data_tools.chat.dialogue import Dialogue
from data_tools.chat.formats import Reading, dialogues_in
from data_tools.chat.rendered import Rendered
from data_tools.chat.rendering import render, render_prompt
from data_tools.chat.truncation import truncate
from data_tools.corpus.sidecar import PAIRS, PROMPTS
from data_tools.errors import DataError
from data_tools.readers.jsonl import RejectedRecordError


class Sample(NamedTuple):
    """Documents that belong together."""

    documents: tuple[Rendered, ...]  # one, or chosen and rejected
    is_truncated: bool


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Makes samples of records.

    Attributes:
        reading: kind, format and system text.
        vocabulary: encodes.
        labels: one of `rendering.LABELS`.
        max_tokens: dialogues are cut to it; pairs and prompts that are longer give no sample.
    """

    reading: Reading
    vocabulary: ChatML
    labels: str
    max_tokens: int

    def samples(self, record: Mapping[str, Any]) -> Iterator[Sample | RejectedRecordError]:
        """A record's sample, or samples, or in the place of one why there is none."""
        try:
            for dialogues in dialogues_in(record, self.reading):
                try:
                    yield self._sample(dialogues)
                except RejectedRecordError as error:
                    yield error
        except RejectedRecordError as error:
            yield error

    def _sample(self, dialogues: tuple[Dialogue, ...]) -> Sample:
        try:
            if self.reading.kind == PAIRS:
                documents = tuple(self._answer(one) for one in dialogues)
            elif self.reading.kind == PROMPTS:
                documents = (render_prompt(dialogues[0], self.vocabulary),)
            else:
                return self._dialogue(dialogues[0])
        except DataError as error:
            raise RejectedRecordError("not_encodable", str(error)) from error
        longest = max(map(len, documents))
        if longest > self.max_tokens:
            raise RejectedRecordError("over_max_tokens", f"{longest} tokens, more than --max-tokens {self.max_tokens}")
        return Sample(documents, False)

    def _dialogue(self, dialogue: Dialogue) -> Sample:
        whole = render(dialogue, self.vocabulary, labels=self.labels)
        if not any(turn.role == "assistant" for turn in dialogue.turns):
            raise RejectedRecordError("no_targets", "the assistant says nothing; --kind prompts reads questions alone")
        cut = truncate(whole, self.max_tokens, end_of_turn=self.vocabulary.im_end)
        if cut is None:
            raise RejectedRecordError(
                "over_max_tokens",
                f"{len(whole)} tokens; no answer ends within --max-tokens {self.max_tokens}",
            )
        return Sample((cut,), cut is not whole)

    def _answer(self, dialogue: Dialogue) -> Rendered:
        """A dialogue of which the last turn alone is learned: what comes before is the prompt."""
        whole = render(dialogue, self.vocabulary, labels=self.labels)
        start = len(render(Dialogue(turns=dialogue.turns[:-1]), self.vocabulary))
        return Rendered(tokens=whole.tokens, targets=whole.targets & (np.arange(len(whole)) >= start))
