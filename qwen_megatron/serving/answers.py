"""What clients get: objects of OpenAI's interface, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_megatron.inference.completion import FinishReason
from qwen_megatron.inference.progress import Piece
from qwen_megatron.inference.vocabulary import Vocabulary

Object = dict[str, Any]


@dataclass(kw_only=True)
class Answer(ABC):
    """One answer under way.

    Attributes:
        model: Its name.
        prompt_tokens: Of the prompt.
        vocabulary: For the texts of single tokens; None if log probabilities are not asked for.
        pieces: What has come.
    """

    model: str
    prompt_tokens: int
    vocabulary: Vocabulary | None = None
    pieces: list[Piece] = field(default_factory=list)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended."""
        return self.pieces[-1].finish_reason if self.pieces else None

    @property
    def usage(self) -> Object:
        """Counts of tokens; a stop token counts for none."""
        new = sum(piece.token is not None for piece in self.pieces)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
        }

    @abstractmethod
    def whole(self) -> Object:
        """The answer in one object."""

    @abstractmethod
    def chunks_of(self, piece: Piece) -> list[Object]:
        """What a stream sends for a piece, which has been added; perhaps nothing."""

    @abstractmethod
    def opening_chunks(self) -> list[Object]:
        """What a stream sends first."""

    @abstractmethod
    def described(self, choices: list[Object], kind: str = "") -> Object:
        """An object around choices."""

    def usage_chunk(self) -> Object:
        """What a stream sends last, where it is asked for."""
        return {**self.described([], ".chunk"), "usage": self.usage}


class CompletionAnswer(Answer):
    """Of /v1/completions."""

    def described(self, choices: list[Object], kind: str = "") -> Object:
        """A completion; its chunks are called the same."""
        return {
            "id": f"cmpl-{self.name}",
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def choice(self, text: str, pieces: Sequence[Piece], reason: FinishReason | None) -> Object:
        """The only choice."""
        return {"index": 0, "text": text, "logprobs": self.logprobs(pieces), "finish_reason": reason}

    def logprobs(self, pieces: Sequence[Piece]) -> Object | None:
        """Of the tokens of pieces, if asked for."""
        if self.vocabulary is None:
            return None
        known = [(piece.token, piece.log_probability) for piece in pieces if piece.token is not None]
        return {
            "tokens": [self.vocabulary.decode([token]) for token, _ in known],
            "token_logprobs": [value for _, value in known],
            "top_logprobs": None,
            "text_offset": None,
        }

    def whole(self) -> Object:
        """The completion."""
        return {**self.described([self.choice(self.text, self.pieces, self.finish_reason)]), "usage": self.usage}

    def opening_chunks(self) -> list[Object]:
        """Nothing."""
        return []

    def chunks_of(self, piece: Piece) -> list[Object]:
        """One, if there is anything to say."""
        if not piece.text and piece.finish_reason is None and self.vocabulary is None:
            return []
        return [self.described([self.choice(piece.text, [piece], piece.finish_reason)])]


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    def described(self, choices: list[Object], kind: str = "") -> Object:
        """A chat completion, or a chunk of one."""
        return {
            "id": f"chatcmpl-{self.name}",
            "object": f"chat.completion{kind}",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def logprobs(self, pieces: Sequence[Piece]) -> Object | None:
        """Of the tokens of pieces, if asked for."""
        if self.vocabulary is None:
            return None
        return {
            "content": [
                {
                    "token": self.vocabulary.decode([piece.token]),
                    "logprob": piece.log_probability,
                    "bytes": None,
                    "top_logprobs": [],
                }
                for piece in pieces
                if piece.token is not None
            ],
            "refusal": None,
        }

    def whole(self) -> Object:
        """The chat completion."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text, "refusal": None},
            "logprobs": self.logprobs(self.pieces),
            "finish_reason": self.finish_reason,
        }
        return {**self.described([choice]), "usage": self.usage}

    def chunk(self, delta: Object, logprobs: Object | None = None, reason: FinishReason | None = None) -> Object:
        """A chunk with what is new."""
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self.described([choice], ".chunk")

    def opening_chunks(self) -> list[Object]:
        """Who speaks."""
        return [self.chunk({"role": "assistant", "content": ""})]

    def chunks_of(self, piece: Piece) -> list[Object]:
        """One for the text, and one for the end."""
        chunks = []
        if piece.text or (self.vocabulary is not None and piece.token is not None):
            chunks.append(self.chunk({"content": piece.text}, self.logprobs([piece])))
        if piece.finish_reason is not None:
            chunks.append(self.chunk({}, reason=piece.finish_reason))
        return chunks


def error_object(message: str, *, status: int, param: str | None = None, code: str | None = None) -> Object:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
