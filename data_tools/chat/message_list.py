"""Lists of messages, in the spelling of OpenAI's interface (role, content) or of ShareGPT (from, value)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from data_tools.chat.conversation import ASSISTANT, OBSERVATION, SYSTEM, USER, Said
from data_tools.chat.react import Tool, ToolCall
from data_tools.io.small_json import kind_of
from data_tools.readers.jsonl import RejectedRecordError

FUNCTION_CALL = "function_call"
_ROLES = {
    "system": SYSTEM,
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": OBSERVATION,
    "tool": OBSERVATION,
    "function": OBSERVATION,
}


def said_in(messages: object, key: str) -> list[Said]:
    """The messages of a list.

    Raises:
        RejectedRecordError: wrong_type, unknown_role, missing_text, text_not_string, wrong_call; names the message.
    """
    if not isinstance(messages, list):
        raise RejectedRecordError("wrong_type", f"{key!r} must be a list of messages, not {kind_of(messages)}")
    return [said_message(message, number, key) for number, message in enumerate(messages)]


def said_message(message: object, number: int, key: str) -> Said:
    """One message; see `said_in`."""
    where = f"{key}[{number}]"
    if not isinstance(message, dict):
        raise RejectedRecordError("wrong_type", f"{where} must be an object, not {kind_of(message)}")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        found = repr(role[:60]) if isinstance(role, str) else kind_of(role)
        raise RejectedRecordError("unknown_role", f"{where}: role must be one of {', '.join(_ROLES)}, not {found}")
    text = _content(message, where)
    if role == FUNCTION_CALL:
        return Said(role=ASSISTANT, text="", calls=tuple(_written_calls(text, where)))
    calls = tuple(_calls(message, where))
    if calls and _ROLES[role] != ASSISTANT:
        raise RejectedRecordError("wrong_call", f"{where}: only the assistant calls tools, not the {role}")
    answers = message.get("tool_call_id")
    return Said(role=_ROLES[role], text=text, calls=calls, answers=answers if isinstance(answers, str) else "")


def tools_in(record: Mapping[str, Any]) -> list[Tool]:
    """The tools that a record offers, under `tools`: a list of objects, or JSON text of one.

    Raises:
        RejectedRecordError: wrong_tools.
    """
    tools = record.get("tools") or []
    if isinstance(tools, str):
        tools = _parsed(tools, "tools", "wrong_tools")
    if not isinstance(tools, list):
        raise RejectedRecordError("wrong_tools", f"'tools' must be a list, not {kind_of(tools)}")
    return [_tool(tool, number) for number, tool in enumerate(tools)]


def _tool(tool: object, number: int) -> Tool:
    inner = tool.get("function", tool) if isinstance(tool, dict) else tool
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(name, str) or not name:
        raise RejectedRecordError("wrong_tools", f"tools[{number}] must be an object with a name")
    description = inner.get("description", "")
    if not isinstance(description, str):
        raise RejectedRecordError("wrong_tools", f"tools[{number}].description must be text")
    parameters = _written(inner.get("parameters", {}), f"tools[{number}].parameters", "wrong_tools")
    return Tool(name=name, human_name=name, description=description, parameters=parameters)


def _content(message: Mapping[str, Any], where: str) -> str:
    """Text of a message; of OpenAI's lists of pieces those of text, of which the list must be."""
    content = message.get("content", message.get("value"))
    if content is None:
        if message.get("tool_calls") or message.get(FUNCTION_CALL):
            return ""
        raise RejectedRecordError("missing_text", f"{where} has neither content nor value")
    if isinstance(content, list):
        pieces = [one.get("text") if isinstance(one, dict) and one.get("type") == "text" else None for one in content]
        if not all(isinstance(piece, str) for piece in pieces):
            raise RejectedRecordError("text_not_string", f"{where}: content must be text; other kinds are not trained")
        return "".join(map(str, pieces))
    if not isinstance(content, str):
        raise RejectedRecordError("text_not_string", f"{where}: the content is {kind_of(content)}, not text")
    return content


def _calls(message: Mapping[str, Any], where: str) -> Iterator[ToolCall]:
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list):
        raise RejectedRecordError("wrong_call", f"{where}: tool_calls must be a list, not {kind_of(listed)}")
    for one in listed:
        identifier = one.get("id") if isinstance(one, dict) else None
        function = one.get("function") if isinstance(one, dict) else None
        yield _call(function, where, identifier if isinstance(identifier, str) else "")
    if message.get(FUNCTION_CALL):
        yield _call(message[FUNCTION_CALL], where, "")


def _written_calls(text: str, where: str) -> Iterator[ToolCall]:
    """ShareGPT's function_call: JSON of a call, or of a list of them."""
    calls = _parsed(text, where, "wrong_call")
    for call in calls if isinstance(calls, list) else [calls]:
        yield _call(call, where, "")


def _call(call: object, where: str, identifier: str) -> ToolCall:
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(name, str) or not name:
        raise RejectedRecordError("wrong_call", f"{where}: a call must be an object with a name and arguments")
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else _written(arguments, where, "wrong_call")
    return ToolCall(name=name, arguments=text, identifier=identifier)


def _written(value: object, where: str, reason: str) -> str:
    """JSON spelled as Python spells it, which is what the released code gives."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise RejectedRecordError(reason, f"{where}: is nested too deeply") from error


def _parsed(text: str, where: str, reason: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RejectedRecordError(reason, f"{where}: is no JSON: {error.msg} at character {error.pos}") from error
