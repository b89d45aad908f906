"""Tokens to text as they come: whole characters only, and nothing that may yet turn out to be a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_megatron.inference.vocabulary import Vocabulary

# Stands for bytes that are no character, or not yet.
REPLACEMENT = "\ufffd"
# Tokens of one character at most: further bytes that are no character are none for good.
LONGEST_CHARACTER = 8


class TextStream:
    """The text of one completion.

    Args:
        vocabulary: Ids to text.
        stop: Texts that end it.
    Attributes:
        text: What is certain so far.
        is_stopped: Whether a stop text has come; it and what follows are left out.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()):
        self.vocabulary = vocabulary
        self.stop = tuple(stop)
        self.text = ""
        self.is_stopped = False
        self.tokens: list[int] = []
        self.held = ""

    def push(self, token: int) -> str:
        """Takes a token; returns the text that has become certain."""
        if self.is_stopped:
            return ""
        self.tokens.append(token)
        text = self.vocabulary.decode(self.tokens)
        if text.endswith(REPLACEMENT) and len(self.tokens) < LONGEST_CHARACTER:
            return ""
        self.tokens.clear()
        return self.take(text)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        rest = self.vocabulary.decode(self.tokens) if self.tokens else ""
        self.tokens.clear()
        return self.take(rest, is_last=True)

    def take(self, text: str, *, is_last: bool = False) -> str:
        """Text up to a stop text, or up to what may be the beginning of one."""
        if self.is_stopped:
            return ""
        text = self.held + text
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.is_stopped = True
            text, self.held = text[: min(found)], ""
        else:
            keep = 0 if is_last else max((overlap(text, stop) for stop in self.stop), default=0)
            text, self.held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += text
        return text


def overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that are the beginning of a stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
