"""A completion as it grows: steps of a running batch become tokens and certain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_megatron.inference.completion import Completion, FinishReason, Step
from qwen_megatron.inference.text_stream import TextStream
from qwen_megatron.inference.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a stream gives: a new token of one of its prompts.

    Attributes:
        index: Of the prompt.
        token: None where a stop token or the end of a held text came.
        text: That has become certain with it; empty without a vocabulary.
        finish_reason: Where it is the last of its prompt.
        log_probability: Of the token, in nats, under the model itself.
    """

    index: int
    token: int | None
    text: str
    finish_reason: FinishReason | None
    log_probability: float = 0.0


class Progress:
    """One prompt's completion under way.

    Args:
        index: Of the prompt.
        vocabulary: Ids to text; None where tokens are not known.
        stop: Texts that end it.
        completion: To be filled.
    """

    def __init__(self, index: int, vocabulary: Vocabulary | None, stop: Sequence[str], completion: Completion):
        self.index = index
        self.completion = completion
        self.stream = None if vocabulary is None else TextStream(vocabulary, stop)

    def take(self, step: Step) -> Piece:
        """Adds a token. Where the piece is the last but the step was not, a stop text came: cancel the request."""
        stream, reason, certain = self.stream, step.finish_reason, ""
        if step.token is not None:
            self.completion.tokens.append(step.token)
            self.completion.log_probabilities.append(step.log_probability)
            certain = stream.push(step.token) if stream else ""
        if stream and reason is not None:
            certain += stream.finish()
        if stream and stream.is_stopped:
            reason = FinishReason.STOP
        self.completion.finish_reason = reason
        self.completion.text = stream.text if stream else None
        return Piece(
            index=self.index,
            token=step.token,
            text=certain,
            finish_reason=reason,
            log_probability=step.log_probability,
        )
