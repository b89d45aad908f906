"""ChatML: turns of a conversation to token ids, as Qwen's chat models read them.

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Hello<|im_end|>
    <|im_start|>assistant

Role, line end and text of a turn are encoded each on its own, as ordinary text; the control ids stand between them. A
text that holds "<|im_end|>" thereby stays a text, whoever wrote it.

Source: Qwen Technical Report (arXiv 2309.16609), section 3.1, and the released generation code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_tools.errors import DataError

ROLES = ("system", "user", "assistant")
DEFAULT_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn.

    Attributes:
        role: One of `ROLES`.
        content: What is said; it may be empty.
    """

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The token ids of a message.

    Attributes:
        header: Up to the line end after the role.
        content: Of the text.
        end: `<|im_end|>` and a line end.
    """

    header: list[int]
    content: list[int]
    end: list[int]

    @property
    def ids(self) -> list[int]:
        """All of them."""
        return [*self.header, *self.content, *self.end]


class ChatML:
    """Encodes messages in a model's vocabulary.

    Args:
        encode: Ids of ordinary text.
        im_start, im_end: Ids of the two control tokens.
    """

    def __init__(self, encode: Callable[[str], list[int]], im_start: int, im_end: int):
        self.encode = encode
        self.im_start = im_start
        self.im_end = im_end
        self.line_end = encode("\n")

    def header(self, role: str) -> list[int]:
        """What stands before the text of a role.

        Raises:
            DataError: if there is no such role.
        """
        if role not in ROLES:
            raise DataError(f"role {role!r:.100}: must be one of {', '.join(ROLES)}")
        return [self.im_start, *self.encode(role), *self.line_end]

    def turn(self, message: Message) -> Turn:
        """The ids of one message.

        Raises:
            DataError: if there is no such role, or the text cannot be encoded.
        """
        return Turn(
            header=self.header(message.role),
            content=self.encode(message.content),
            end=[self.im_end, *self.line_end],
        )

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant's answer begins.

        Args:
            messages: In order; where the first is no system message, the default one comes before it.
        Raises:
            DataError: naming the message that is wrong.
        """
        ids: list[int] = []
        whole = with_system(messages)
        for number, message in enumerate(whole, start=len(messages) - len(whole)):
            try:
                ids += self.turn(message).ids
            except DataError as error:
                raise DataError(f"message {number} of the conversation: {error}") from error
        return ids + self.header("assistant")


def with_system(messages: Sequence[Message]) -> list[Message]:
    """The messages, after the default system message if they do not begin with one."""
    if messages and messages[0].role == "system":
        return list(messages)
    return [Message(role="system", content=DEFAULT_SYSTEM), *messages]
