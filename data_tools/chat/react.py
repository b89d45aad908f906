"""Tools in the paper's ReAct form: how a prompt offers them, and a call and its result in the assistant's turn.

    Thought: I should look it up.
    Action: search
    Action Input: {"query": "Qwen"}
    Observation: {"pages": 3}
    Thought: I now know the final answer.
    Final Answer: There are three.

Everything up to "Observation:", at which generation stops, is said by the assistant; what follows up to the next
"Thought:" is put there by whoever runs the tool.

Source: Qwen Technical Report (arXiv 2309.16609), section 3.4 and appendix; Qwen's released examples. ReAct is Yao et
al. 2022 (arXiv 2210.03629).
"""

from collections.abc import Sequence
from dataclasses import dataclass

THOUGHT, ACTION, ACTION_INPUT, OBSERVATION = "Thought:", "\nAction:", "\nAction Input:", "\nObservation:"
FINAL = "Thought: I now know the final answer.\nFinal Answer: "

_INSTRUCTION = """Answer the following questions as best you can. You have access to the following tools:

{tool_texts}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{tool_names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: """


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What a model is told of a tool.

    Attributes:
        name: By which the model calls it.
        human_name: By which the model is told what it is.
        description: What it is good for.
        parameters: Their names, types and meanings, as JSON.
    """

    name: str
    human_name: str
    description: str
    parameters: str


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        name: Of the tool.
        arguments: JSON, as it stands in the dialogue.
        identifier: By which its result names it; empty if results follow in the order of the calls.
    """

    name: str
    arguments: str
    identifier: str = ""


def tool_texts(tools: Sequence[Tool]) -> str:
    """A paragraph about each tool."""
    return "\n\n".join(
        f"{tool.name}: Call this tool to interact with the {tool.human_name} API. What is the {tool.human_name} API "
        f"useful for? {tool.description} Parameters: {tool.parameters} Format the "
        "arguments as a JSON object."
        for tool in tools
    )


def tool_names(tools: Sequence[Tool]) -> str:
    """The names that an action may be."""
    return ",".join(tool.name for tool in tools)


def question(tools: Sequence[Tool], query: str) -> str:
    """What a user's question becomes where tools are offered; itself where none are."""
    if not tools:
        return query
    # Not str.format over the question, which may hold braces.
    return _INSTRUCTION.format(tool_texts=tool_texts(tools), tool_names=tool_names(tools)) + query


def call_text(thought: str, call: ToolCall) -> str:
    """A call up to where its result follows; a thought that is missing is made up, as the released code does."""
    thought = thought.strip() or f"I can use {call.name}."
    if not thought.startswith(THOUGHT):
        thought = f"{THOUGHT} {thought}"
    return f"{thought}{ACTION} {call.name}{ACTION_INPUT} {call.arguments}{OBSERVATION}"


def answer_text(answer: str) -> str:
    """The answer to a question with which tools were offered."""
    return answer if answer.startswith(THOUGHT) else FINAL + answer
