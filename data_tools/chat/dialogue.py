"""A dialogue as it is read: turns, made of parts that their speaker said and of parts that were put there."""

from collections.abc import Iterable
from dataclasses import dataclass

from data_tools.chat.chatml import Message


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a turn's text.

    Attributes:
        text: The text.
        is_said: Whether the speaker said it; False for what a tool returned, which stands in the assistant's turn.
    """

    text: str
    is_said: bool = True


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One turn.

    Attributes:
        role: One of `chatml.ROLES`.
        parts: In order; a part is encoded on its own, so cuts lie where the tokenizer cuts too.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All that stands in the turn."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Turns in order."""

    turns: tuple[Utterance, ...]


def said(role: str, text: str) -> Utterance:
    """A turn of one part."""
    return Utterance(role=role, parts=(Part(text=text),))


def dialogue_of(messages: Iterable[Message]) -> Dialogue:
    """A dialogue of plain messages."""
    return Dialogue(turns=tuple(said(message.role, message.content) for message in messages))
