"""Messages as files hold them to a dialogue: calls of tools and their results become parts of the assistant's turn."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_tools.chat.dialogue import Dialogue, Part, Utterance, said
from data_tools.chat.react import Tool, ToolCall, answer_text, call_text, question
from data_tools.readers.jsonl import RejectedRecordError

SYSTEM, USER, ASSISTANT, OBSERVATION = "system", "user", "assistant", "observation"


@dataclass(frozen=True, kw_only=True)
class Said:
    """One message of a file.

    Attributes:
        role: system, user, assistant, or observation: what a tool returned.
        text: What it says.
        calls: Of tools, by the assistant.
        answers: Identifier of the call that this is the result of; empty if the file has none.
    """

    role: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    answers: str = ""


def conversation(messages: Sequence[Said], tools: Sequence[Tool] = (), system: str | None = None) -> Dialogue:
    """The dialogue that messages make.

    Where tools are offered, or called, the first question offers them and every answer is in ReAct form. Calls, their
    results and what follows on them are one turn. Results at the end, which nobody answered, are left out.

    Args:
        messages: In order.
        tools: What is offered.
        system: Text of a system turn for dialogues that have none; None for none.
    Raises:
        RejectedRecordError: no_messages, system_not_first, empty_message, result_without_call, call_without_result,
            result_without_answer.
    """
    if not messages:
        raise RejectedRecordError("no_messages", "the dialogue has no messages")
    turns: list[Utterance] = []
    if messages[0].role != SYSTEM and system is not None:
        turns.append(said(SYSTEM, system))
    in_react = bool(tools) or any(message.calls for message in messages)
    answer = _Answer(in_react)
    offered = False
    for number, message in enumerate(messages):
        if message.role == SYSTEM and number:
            raise RejectedRecordError("system_not_first", f"message {number} is a system message; only the first may")
        if not message.text and not message.calls and message.role in (USER, ASSISTANT):
            raise RejectedRecordError("empty_message", f"message {number}, of the {message.role}, is empty")
        if message.role == OBSERVATION:
            answer.add_result(message, number)
            continue
        if message.role == ASSISTANT:
            # Two answers in a row are two turns, unless the first waits for the result of a call.
            if answer.is_ended:
                turns += answer.take()
            answer.add(message, number)
            continue
        turns += answer.take()
        text = message.text
        if message.role == USER and not offered:
            text, offered = question(tools, text), True
        turns.append(said(message.role, text))
    turns += answer.take(at_end=True)
    return Dialogue(turns=tuple(turns))


class _Answer:
    """The assistant's turn as it grows."""

    def __init__(self, in_react: bool) -> None:
        self._in_react = in_react
        self._parts: list[Part] = []
        self._calls: dict[str, ToolCall] = {}  # whose result is to come, by identifier or, without one, by place
        self._thought = ""
        self._result: str | None = None  # of the last call, not yet answered

    @property
    def is_ended(self) -> bool:
        """Whether something was said, and no call waits for its result, nor a result for its answer."""
        return bool(self._parts) and not self._calls and self._result is None

    @property
    def _next_call(self) -> ToolCall:
        return next(iter(self._calls.values()))

    def add(self, message: Said, number: int) -> None:
        """The assistant says something, or calls."""
        if self._calls:
            raise RejectedRecordError(
                "call_without_result", f"message {number}: the call of {self._next_call.name} has no result before it"
            )
        self._put_result()
        if message.calls:
            # An identifier is text that is not empty; the key of a call without one must not be another's.
            self._calls = {call.identifier or f"\0{place}": call for place, call in enumerate(message.calls)}
            if len(self._calls) < len(message.calls):
                raise RejectedRecordError("wrong_call", f"message {number}: two calls have the same identifier")
            self._thought = message.text
        else:
            self._parts.append(Part(text=answer_text(message.text) if self._in_react else message.text))

    def add_result(self, message: Said, number: int) -> None:
        """A tool returns something."""
        first = next(iter(self._calls), None)
        key = message.answers if message.answers in self._calls else first
        # By order where the call or its result has no identifier.
        if key is None or (message.answers and key != message.answers and not key.startswith("\0")):
            raise RejectedRecordError("result_without_call", f"message {number} is the result of no call before it")
        call = self._calls.pop(key)
        self._put_call(call)
        self._result = message.text

    def take(self, *, at_end: bool = False) -> list[Utterance]:
        """The turn, if there is one; the next begins empty."""
        if at_end and len(self._calls) == 1:
            self._put_call(self._calls.popitem()[1])
        if self._calls:
            raise RejectedRecordError("call_without_result", f"the call of {self._next_call.name} has no result")
        if self._result is not None and not at_end:
            raise RejectedRecordError("result_without_answer", "the assistant says nothing after the result of a call")
        parts, self._parts, self._result = tuple(self._parts), [], None
        return [Utterance(role=ASSISTANT, parts=parts)] if parts else []

    def _put_call(self, call: ToolCall) -> None:
        self._put_result()
        self._parts.append(Part(text=call_text(self._thought, call)))
        self._thought = ""

    def _put_result(self) -> None:
        """The last result; before a thought, whose line begins with a token of its own, so that a cut there is one."""
        if self._result is not None:
            self._parts.append(Part(text=f" {self._result}\n", is_said=False))
            self._result = None
