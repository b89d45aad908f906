"""A chat with a model: its history, and answers as they come."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import abc
from collections.abc import Sequence

from data_tools.chat.chatml import ChatML, Message
from qwen_megatron.errors import DataError
from qwen_megatron.inference.completion import Completion
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.inference.vocabulary import Vocabulary


def chatml_of(vocabulary: Vocabulary | None) -> ChatML:
    """ChatML in the tokens of a model.

    Raises:
        DataError: if they are not known, or have no control tokens of chats.
    """
    if vocabulary is None or vocabulary.chat_ids is None:
        raise DataError(
            "chats need the tokens <|im_start|> and <|im_end|>, which the model's vocabulary does not have; use a "
            "model with Qwen's vocabulary, or completions of plain text (generate)"
        )
    return ChatML(vocabulary.encode, *vocabulary.chat_ids)


def ending_turns(sampling: Sampling, vocabulary: Vocabulary) -> Sampling:
    """The same, ending at what ends a turn or a document."""
    ends = dict.fromkeys([*reversed(vocabulary.chat_ids or ()), *vocabulary.end_ids])
    return dataclasses.replace(sampling, stop_token_ids=tuple(ends))


class Conversation:
    """The turns so far. On several ranks the first has them; all call `answer` with its ids.

    Args:
        generator: With a vocabulary that has control tokens of chats.
        sampling: Of each answer; the number of the answer names its draws.
        system: Text of the system message; None for the default one.
    Raises:
        DataError: if the vocabulary has no such tokens, or the system text cannot be encoded.
    """

    def __init__(self, generator: Generator, sampling: Sampling, system: str | None = None):
        self.generator = generator
        self.chatml = chatml_of(generator.vocabulary)
        assert generator.vocabulary is not None
        self.sampling = ending_turns(sampling, generator.vocabulary)
        self.num_answers = 0
        self.messages: list[Message] = []
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Begins anew.

        Args:
            system: Text of the system message; None leaves the one that is there.
        Raises:
            DataError: if it cannot be encoded; then nothing has changed.
        """
        if system is None:
            self.messages = self.messages[:1] if self.messages and self.messages[0].role == "system" else []
            return
        message = Message(role="system", content=system)
        self.chatml.turn(message)
        self.messages = [message]

    def prompt(self, text: str) -> list[int]:
        """The ids that ask for an answer to a text; the history does not change.

        Raises:
            DataError: if it cannot be encoded.
        """
        return self.chatml.prompt([*self.messages, Message(role="user", content=text)])

    def answer(self, prompt: Sequence[int], text: str) -> abc.Generator[str, None, None]:
        """Text after text of the answer; it stays in the history as far as it came.

        Args:
            prompt: As of `prompt`.
            text: Of the user.
        """
        completion = Completion()
        stream = self.generator.stream([prompt], self.sampling, [completion], first_draw=self.num_answers)
        self.num_answers += 1
        try:
            with contextlib.closing(stream):  # type: ignore[type-var]
                for piece in stream:
                    yield piece.text
        finally:
            self.messages += [
                Message(role="user", content=text),
                Message(role="assistant", content=completion.text or ""),
            ]
