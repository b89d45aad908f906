"""Records of every format to dialogues and pairs; records that fit none are named by rule."""

from __future__ import annotations

from typing import Any

import pytest

from data_tools.chat.dialogue import Dialogue
from data_tools.chat.formats import Reading, dialogues_in
from data_tools.chat.react import question
from data_tools.readers.jsonl import RejectedRecordError


def read(record: dict[str, Any], kind: str = "dialogues", **options: Any) -> list[tuple[Dialogue, ...]]:
    return list(dialogues_in(record, Reading(kind=kind, **options)))


def texts(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in dialogue.turns]


HI = [("user", "Hi"), ("assistant", "Hello!")]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "id": 7},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                      {"role": "assistant", "content": "Hello!"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello!"}], "system": ""},
        {"instruction": "Hi", "input": "", "output": "Hello!"},
        {"instruction": "Hi", "output": "Hello!", "history": []},
        {"instruction": "Hi", "instances": [{"input": "", "output": "Hello!"}], "name": "x"},
        {"prompt": "Hi", "completion": "Hello!"},
        {"prompt": [{"role": "user", "content": "Hi"}], "response": "Hello!"},
    ],
)  # fmt: skip
def test_formats_are_told_by_their_keys(record: dict[str, Any]) -> None:
    ((dialogue,),) = read(record)
    assert texts(dialogue) == HI
    ((with_system,),) = read(record, system="Be brief.")
    assert texts(with_system) == [("system", "Be brief."), *HI]
    ((prompt,),) = read(record, "prompts")
    assert texts(prompt) == HI[:1]


def test_what_alpaca_adds() -> None:
    record = {"instruction": "Add", "input": "1, 2", "output": "3", "history": [["Hi", "Hello!"]], "system": "S"}
    ((dialogue,),) = read(record, system="not this")
    assert texts(dialogue) == [("system", "S"), *HI, ("user", "Add\n1, 2"), ("assistant", "3")]
    instances = [{"input": "1", "output": "a"}, {"input": "2", "output": "b"}]
    both = read({"instruction": "Name", "instances": instances})
    assert [texts(one)[1] for (one,) in both] == [("assistant", "a"), ("assistant", "b")]


PREFERRED = ([*HI[:1], ("assistant", "good")], [*HI[:1], ("assistant", "bad")])
HUMAN = {"from": "human", "value": "Hi"}


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        {"prompt": "Hi", "chosen": "good", "rejected": "bad"},
        {"instruction": "Hi", "input": "", "chosen": "good", "rejected": "bad"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: good", "rejected": "\n\nHuman: Hi\n\nAssistant: bad"},
        {"prompt": "Hi", "chosen": [HUMAN, {"from": "gpt", "value": "good"}],
         "rejected": [HUMAN, {"from": "gpt", "value": "bad"}]},
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "good"}],
         "rejected": [{"role": "assistant", "content": "bad"}]},
    ],
)  # fmt: skip
def test_pairs(record: dict[str, Any]) -> None:
    ((chosen, rejected),) = read(record, "pairs")
    assert (texts(chosen), texts(rejected)) == PREFERRED
    ((prompt,),) = read(record, "prompts")
    assert texts(prompt) == HI[:1]


def test_a_transcript_of_several_turns() -> None:
    before = "\n\nHuman: a\n\nstill a\n\nAssistant:b\n\nHuman: c "
    record = {"chosen": f"{before}\n\nAssistant: d", "rejected": f"{before}\n\nAssistant: e"}
    ((chosen, _),) = read(record, "pairs")
    assert texts(chosen) == [("user", "a\n\nstill a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


WEATHER = {"type": "function", "function": {"name": "w", "description": "Weather.", "parameters": {"c": {}}}}
RENDERED = (
    "Thought: I can use w.\nAction: w\nAction Input: {\"c\": \"X\"}\nObservation: 3\n"
    "Thought: I now know the final answer.\nFinal Answer: 3 degrees."
)  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        {"tools": [WEATHER], "messages": [
            {"role": "user", "content": "Now?"},
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "w", "arguments": '{"c": "X"}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
            {"role": "assistant", "content": "3 degrees."}]},
        {"tools": [WEATHER["function"]], "messages": [
            {"role": "user", "content": "Now?"},
            {"role": "assistant", "function_call": {"name": "w", "arguments": {"c": "X"}}},
            {"role": "function", "name": "w", "content": "3"},
            {"role": "assistant", "content": "3 degrees."}]},
        {"tools": '[{"name": "w", "description": "Weather.", "parameters": {"c": {}}}]', "conversations": [
            {"from": "human", "value": "Now?"},
            {"from": "function_call", "value": '{"name": "w", "arguments": {"c": "X"}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "3 degrees."}]},
    ],
)  # fmt: skip
def test_calls_of_tools_in_the_papers_form(record: dict[str, Any]) -> None:
    ((dialogue,),) = read(record)
    (_, asked), (_, answer) = texts(dialogue)
    assert answer == RENDERED
    assert [part.is_said for part in dialogue.turns[1].parts] == [True, False, True]
    assert dialogue.turns[1].parts[1].text == " 3\n"
    assert asked.startswith("Answer the following questions as best you can. You have access to the following tools:")
    assert "w: Call this tool to interact with the w API." in asked
    assert 'Parameters: {"c": {}}' in asked
    assert asked.endswith("Begin!\n\nQuestion: Now?")
    assert "should be one of [w]" in asked


def test_calls_at_the_same_time_become_steps() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Thought: both", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "B"},
        {"role": "tool", "tool_call_id": "a", "content": "A"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "Thought: polite\nFinal Answer: welcome"},
    ]
    ((dialogue,),) = read({"messages": messages})
    assert dialogue.turns[1].text == (
        "Thought: both\nAction: b\nAction Input: {}\nObservation: B\n"
        "Thought: I can use a.\nAction: a\nAction Input: {}\nObservation: A\n"
        "Thought: I now know the final answer.\nFinal Answer: done"
    )
    assert dialogue.turns[3].text == "Thought: polite\nFinal Answer: welcome"


def test_a_dialogue_may_end_with_a_call_and_a_last_result_is_left_out() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": "{}"}}]}
    messages = [{"role": "user", "content": "q"}, call]
    for more in ([], [{"role": "tool", "content": "3"}]):
        ((dialogue,),) = read({"messages": [*messages, *more]})
        assert dialogue.turns[1].text == "Thought: I can use w.\nAction: w\nAction Input: {}\nObservation:"


def m(*spoken: str) -> dict[str, Any]:
    """Messages written as role: text."""
    pairs = (one.split(": ", 1) for one in spoken)
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def calls(*identifiers: str) -> dict[str, Any]:
    """A message that calls tools."""
    listed = [{"id": one, "function": {"name": "w", "arguments": "{}"}} for one in identifiers]
    return {"role": "assistant", "tool_calls": listed}


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": "{}"}}]}
BAD = [
    ({"text": "a"}, "dialogues", "no_format"),
    ({}, "dialogues", "no_format"),
    ({"messages": 3}, "dialogues", "wrong_type"),
    ({"messages": []}, "dialogues", "no_messages"),
    ({"messages": ["a"]}, "dialogues", "wrong_type"),
    ({"messages": [{"role": "user"}]}, "dialogues", "missing_text"),
    ({"messages": [{"role": "user", "content": 3}]}, "dialogues", "text_not_string"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "dialogues", "text_not_string"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "dialogues", "unknown_role"),
    (m("wizard: a"), "dialogues", "unknown_role"),
    (m("user: a", "system: b"), "dialogues", "system_not_first"),
    (m("user: ", "assistant: b"), "dialogues", "empty_message"),
    (m("user: a", "assistant: "), "dialogues", "empty_message"),
    (m("user: a", "tool: b", "assistant: c"), "dialogues", "result_without_call"),
    ({"messages": [CALL, *m("user: a")["messages"]]}, "dialogues", "call_without_result"),
    ({"messages": [calls("1", "1")]}, "dialogues", "wrong_call"),
    ({"messages": [calls("1"), {"role": "tool", "tool_call_id": "2", "content": "a"}]}, "dialogues",
     "result_without_call"),
    ({"messages": [calls("1", "2", "3"), {"role": "tool", "tool_call_id": "1", "content": "a"}]}, "dialogues",
     "call_without_result"),
    ({"messages": [CALL, *m("assistant: a")["messages"]]}, "dialogues", "call_without_result"),
    ({"messages": [CALL, *m("tool: 3", "user: a")["messages"]]}, "dialogues", "result_without_answer"),
    ({"messages": [{**CALL, "role": "user"}]}, "dialogues", "wrong_call"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "dialogues", "wrong_call"),
    ({"messages": [{"role": "assistant", "tool_calls": "w"}]}, "dialogues", "wrong_call"),
    ({"conversations": [{"from": "function_call", "value": "w(3)"}]}, "dialogues", "wrong_call"),
    ({**m("user: a"), "tools": "w"}, "dialogues", "wrong_tools"),
    ({**m("user: a"), "tools": [{"description": "w"}]}, "dialogues", "wrong_tools"),
    ({**m("user: a"), "tools": {"name": "w"}}, "dialogues", "wrong_tools"),
    ({"instruction": 3, "output": "a"}, "dialogues", "wrong_type"),
    ({"instruction": "a", "output": 3}, "dialogues", "wrong_type"),
    ({"instruction": "a", "instances": []}, "dialogues", "wrong_type"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "dialogues", "wrong_type"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "dialogues", "is_a_pair"),
    (m("user: a"), "pairs", "no_format"),
    ({"prompt": "a", "chosen": "b"}, "pairs", "no_format"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "pairs", "same_answers"),
    ({"prompt": "a", "chosen": "b", "rejected": 3}, "pairs", "wrong_type"),
    ({"chosen": "b", "rejected": "c"}, "pairs", "no_answer"),
    ({"chosen": m("user: a", "assistant: b")["messages"], "rejected": m("user: x", "assistant: c")["messages"]},
     "pairs", "prompts_differ"),
    ({"chosen": m("user: a", "assistant: b", "user: c")["messages"], "rejected": m("user: a")["messages"]},
     "pairs", "no_answer"),
    (m("system: a"), "prompts", "no_question"),
    (m("assistant: a"), "prompts", "no_question"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "kind", "reason"), BAD)
def test_bad_records_are_named_by_rule(record: dict[str, Any], kind: str, reason: str) -> None:
    with pytest.raises(RejectedRecordError) as raised:
        read(record, kind)
    assert raised.value.reason == reason
    assert raised.value.detail


def test_a_format_that_is_named_must_be_there() -> None:
    with pytest.raises(RejectedRecordError, match="--format alpaca needs the key 'instruction'; it has 'messages'"):
        read(m("user: a"), record_format="alpaca")
    record = {**m("user: a", "assistant: b"), "instruction": "c", "output": "d"}
    ((dialogue,),) = read(record, record_format="alpaca")
    assert texts(dialogue) == [("user", "c"), ("assistant", "d")]


def test_the_question_is_that_of_the_benchmark() -> None:
    """One text, in the data and in the task file of `qwen-megatron evaluate`."""
    import yaml

    from data_tools.chat.react import Tool, tool_names, tool_texts
    from qwen_megatron.evaluation import task_file

    tool = Tool(name="w", human_name="Weather", description="Is it {raining}?", parameters='{"c": {"d": 1}}')
    text = task_file.__file__.replace("task_file.py", "tasks/react.yaml")
    with open(text, encoding="utf-8") as stream:
        template = yaml.safe_load(stream)["question"]
    expected = template.format(tool_texts=tool_texts([tool]), tool_names=tool_names([tool]), query="{a}?")
    assert question([tool], "{a}?") == expected
