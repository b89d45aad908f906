"""Dialogues and preference pairs out of the records that files hold, whatever their format.

- messages: a list of role and content; calls of tools as OpenAI's interface has them
- sharegpt: `conversations`, a list of from and value
- alpaca: instruction, input, output; or, as self-instruct has it, instruction and instances of input and output
- prompt: prompt, and completion or response

Pairs are records with chosen and rejected: whole dialogues, answers to a prompt in any of these formats, or transcripts
"\\n\\nHuman: ...\\n\\nAssistant: ...".
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.chat.conversation import ASSISTANT, SYSTEM, USER, Said, conversation
from data_tools.chat.dialogue import Dialogue
from data_tools.chat.message_list import said_in, said_message, tools_in
from data_tools.corpus.sidecar import PAIRS, PROMPTS
from data_tools.io.small_json import kind_of
from data_tools.readers.jsonl import RejectedRecordError

FORMATS = ("messages", "sharegpt", "alpaca", "prompt")
CHOSEN, REJECTED = "chosen", "rejected"
# Keys of which one makes a record one of the format.
_KEYS = {"messages": ("messages",), "sharegpt": ("conversations",), "alpaca": ("instruction",), "prompt": ("prompt",)}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How records are read.

    Attributes:
        kind: dialogues, pairs or prompts.
        record_format: one of `FORMATS`; None: by each record's keys.
        system: text of the system turn of dialogues that have none; None for none.
    """

    kind: str
    record_format: str | None = None
    system: str | None = None


def dialogues_in(record: Mapping[str, Any], reading: Reading) -> Iterator[tuple[Dialogue, ...]]:
    """What a record holds: tuples of one dialogue, or of chosen and rejected one.

    A record has one of them, except that self-instruct's may have several instances.

    Raises:
        RejectedRecordError: the record fits no format, or breaks a rule of its own.
    """
    is_pair = CHOSEN in record and REJECTED in record
    if reading.kind == PAIRS:
        yield _pair(record, reading)
    elif reading.kind == PROMPTS and is_pair:
        chosen, _ = _pair(record, reading)
        yield (_up_to_answer(chosen),)
    elif is_pair:
        raise RejectedRecordError("is_a_pair", "the record has chosen and rejected; --kind pairs reads it")
    else:
        for messages in _message_lists(record, reading.record_format):
            dialogue = conversation(messages, tools_in(record), reading.system)
            yield (_up_to_answer(dialogue) if reading.kind == PROMPTS else dialogue,)


def _message_lists(record: Mapping[str, Any], record_format: str | None) -> list[list[Said]]:
    """The messages of the dialogue, or dialogues, of a record that is no pair."""
    name = record_format or _format_of(record)
    missing = [key for key in _KEYS[name] if key not in record]
    if missing:
        raise RejectedRecordError("no_format", f"--format {name} needs the key {missing[0]!r}; it has {_keys(record)}")
    if name in ("messages", "sharegpt"):
        return [_with_system(record, said_in(record[_KEYS[name][0]], _KEYS[name][0]))]
    if name == "alpaca":
        return [_with_system(record, one) for one in _alpaca(record)]
    answers = [record[key] for key in ("completion", "response") if record.get(key)]
    messages = _as_messages(record["prompt"], USER, "prompt")
    return [[*messages, *(message for one in answers[:1] for message in _as_messages(one, ASSISTANT, "completion"))]]


def _format_of(record: Mapping[str, Any]) -> str:
    for name, keys in _KEYS.items():
        if any(key in record for key in keys):
            return name
    raise RejectedRecordError(
        "no_format",
        f"no format has the keys {_keys(record)}; one of messages, conversations, instruction, prompt must be there",
    )


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(record)[:8])) or "no keys"


def _with_system(record: Mapping[str, Any], messages: list[Said]) -> list[Said]:
    """Before the messages the text under "system", where files keep it there."""
    system = record.get("system")
    if not system or (messages and messages[0].role == SYSTEM):
        return messages
    return [Said(role=SYSTEM, text=_text(system, "system")), *messages]


def _alpaca(record: Mapping[str, Any]) -> Iterator[list[Said]]:
    instruction = _text(record["instruction"], "instruction")
    instances = record.get("instances", [record])
    if not isinstance(instances, list) or not instances or not all(isinstance(one, dict) for one in instances):
        raise RejectedRecordError("wrong_type", "'instances' must be a list of objects")
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
        raise RejectedRecordError("wrong_type", "'history' must be a list of question and answer")
    before = [
        Said(role=role, text=_text(text, "history"))
        for pair in history
        for role, text in zip((USER, ASSISTANT), pair, strict=True)
    ]
    for instance in instances:
        given = _text(instance.get("input") or "", "input")
        asked = Said(role=USER, text=f"{instruction}\n{given}" if given else instruction)
        output = instance.get("output")
        answer = [] if output is None else [Said(role=ASSISTANT, text=_text(output, "output"))]
        yield [*before, asked, *answer]


def _pair(record: Mapping[str, Any], reading: Reading) -> tuple[Dialogue, Dialogue]:
    """Chosen and rejected dialogue, which differ in their last turn alone."""
    for key in (CHOSEN, REJECTED):
        if key not in record:
            raise RejectedRecordError("no_format", f"a pair has chosen and rejected; this has {_keys(record)}")
    asked = {key: value for key, value in record.items() if key not in (CHOSEN, REJECTED, "output")}
    is_prompted = any(key in asked for keys in _KEYS.values() for key in keys)
    before = _message_lists(asked, reading.record_format)[0] if is_prompted else []
    dialogues = []
    for key in (CHOSEN, REJECTED):
        said = _as_messages(record[key], ASSISTANT, key)
        # Whole dialogues may have the prompt a second time beside them.
        whole = said if not before or any(one.role == USER for one in said) else [*before, *said]
        dialogues.append(conversation(whole, tools_in(record), reading.system))
    chosen, rejected = dialogues
    for key, dialogue in zip((CHOSEN, REJECTED), dialogues, strict=True):
        if dialogue.turns[-1].role != ASSISTANT or len(dialogue.turns) < 2:
            raise RejectedRecordError("no_answer", f"{key} must be a dialogue that ends with an answer")
    if chosen.turns[:-1] != rejected.turns[:-1]:
        raise RejectedRecordError("prompts_differ", "chosen and rejected must be the same up to their last answer")
    if chosen.turns[-1].text == rejected.turns[-1].text:
        raise RejectedRecordError("same_answers", "chosen and rejected are the same text; nothing is preferred")
    return chosen, rejected


def _up_to_answer(dialogue: Dialogue) -> Dialogue:
    turns = dialogue.turns[:-1] if dialogue.turns[-1].role == ASSISTANT else dialogue.turns
    if not turns or turns[-1].role != USER:
        raise RejectedRecordError("no_question", "a prompt must end with a question of the user's")
    return Dialogue(turns=turns)


def _as_messages(value: object, role: str, key: str) -> list[Said]:
    """Messages of a list, of a single message, of a transcript, or of a text that ``role`` says."""
    if isinstance(value, list):
        return said_in(value, key)
    if isinstance(value, dict):
        return [said_message(value, 0, key)]
    text = _text(value, key)
    return list(_transcript(text)) if _SPEAKER.match(text) else [Said(role=role, text=text)]


def _transcript(text: str) -> Iterator[Said]:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    _, *pieces = _SPEAKER.split(text)
    for speaker, spoken in zip(pieces[::2], pieces[1::2], strict=True):
        yield Said(role=USER if speaker == "Human" else ASSISTANT, text=spoken.strip())


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise RejectedRecordError("wrong_type", f"{key!r} must be text, not {kind_of(value)}")
    return value
