"""Task files: the prompt of a made-up record, and what counts as right."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_megatron.errors import ConfigError, DataError
from qwen_megatron.evaluation.exam import ExamResult, sit
from qwen_megatron.evaluation.prompts import prepare
from qwen_megatron.evaluation.results import metrics_of
from qwen_megatron.evaluation.sandbox import Limits
from qwen_megatron.evaluation.task_file import find_task, known_tasks, read_task
from tests.evaluation.scripted import FILES, text_model, write_benchmarks, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def ask(folder: Path, task: str, answer: str, *, is_chat: bool = False, limits: Limits | None = None) -> ExamResult:
    """What a model gets that answers everything the same."""
    model, _ = text_model(lambda prompt: answer)
    return sit(prepare(find_task(task), folder, is_chat=is_chat), model, limits)


def prompts(folder: Path, task: str, *, is_chat: bool = False) -> list[str]:
    return [item.text for item in prepare(find_task(task), folder, is_chat=is_chat).items]


def test_every_task_of_the_issue_is_there() -> None:
    assert {path.split("/")[0].split(".")[0].lower() for path in FILES} <= set(known_tasks())
    shots = {name: find_task(name).shots for name in known_tasks()}
    assert {name: count for name, count in shots.items() if count} == {
        "mmlu": 5,
        "ceval": 5,
        "cmmlu": 5,
        "gsm8k": 8,
        "math": 4,
        "mbpp": 3,
        "bbh": 3,
    }


def test_mmlu(folder: Path) -> None:
    (prompt,) = prompts(folder, "mmlu")
    shot = "Question: What is 0 + 1?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: B\n\n"
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    assert prompt.startswith(head + shot)
    assert prompt.count("Answer: B\n\n") == 5
    assert prompt.endswith("\n\nQuestion: What is 10 + 1?\nA. 10\nB. 11\nC. 12\nD. 13\nAnswer:")


@pytest.mark.parametrize("task", ["ceval", "cmmlu"])
def test_chinese_choices(folder: Path, task: str) -> None:
    (prompt,) = prompts(folder, task)
    assert prompt.startswith("问题：What is 0 + 1?\nA. 0\nB. 1\nC. 2\nD. 3\n答案：B\n\n问题：What is 1")
    assert prompt.endswith("\n\n问题：What is 10 + 1?\nA. 10\nB. 11\nC. 12\nD. 13\n答案：")


@pytest.mark.parametrize(("task", "space"), [("mmlu", " "), ("ceval", ""), ("cmmlu", "")])
def test_choices_are_compared_by_probability(folder: Path, task: str, space: str) -> None:
    right, wrong = ask(folder, task, f"{space}B"), ask(folder, task, f"{space}C")
    assert [one.scores for one in right.answers] == [{"accuracy": 1.0}]
    assert [(one.completion, one.scores) for one in wrong.answers] == [("C", {"accuracy": 0.0})]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("B", 1.0),
        ("The answer is B.", 1.0),
        ("A is wrong, so the correct answer is (B) 11.", 1.0),
        ("答案是B", 1.0),
        ("C", 0.0),
        ("The answer is D, not B", 0.0),
        ("I do not know", 0.0),
    ],
)
def test_choices_in_chat_are_read_out_of_the_reply(folder: Path, answer: str, score: float) -> None:
    assert ask(folder, "mmlu", answer, is_chat=True).answers[0].scores == {"accuracy": score}


def test_chat_is_chatml_without_shots(folder: Path) -> None:
    model, scripted = text_model(lambda prompt: "The answer is 18")
    result = sit(prepare(find_task("gsm8k"), folder, is_chat=True), model, None)
    (asked,) = scripted.asked
    assert asked == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nA hen lays 2 eggs a day. In 9 "
        "days?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert result.exam.shots == 0
    assert result.answers[0].scores == {"accuracy": 1.0}


def test_gsm8k(folder: Path) -> None:
    (prompt,) = prompts(folder, "gsm8k")
    head = "Question: How much is 0 and 1,000?\nLet's think step by step\nSo.\nThe answer is 1,000\n\nQuestion: How"
    assert prompt.startswith(head)
    assert prompt.count("The answer is") == 8
    assert prompt.endswith("\n\nQuestion: A hen lays 2 eggs a day. In 9 days?\nLet's think step by step\n")
    model, scripted = text_model(lambda prompt: "")
    sit(prepare(find_task("gsm8k"), folder), model, None)
    assert list(scripted.stops) == ["\n\n", "Question:"]


def test_math(folder: Path) -> None:
    (prompt,) = prompts(folder, "math")
    shot = "Problem:\n$0+1$?\n\nSolution:\n\\boxed{1}\nFinal Answer: The final answer is $1$. I hope it is correct.\n\n"
    assert prompt.startswith(shot)
    assert prompt.endswith("Problem:\nHalf of $3$?\n\nSolution:\n")


def test_bbh(folder: Path) -> None:
    first, second = prompts(folder, "bbh")
    assert first == (
        "Evaluate it.\n\n"
        + "".join(f"Q: q{n}\nA: Let's think step by step.\nSo the answer is x{n}.\n\n" for n in range(3))
        + "Q: not True is\nA: Let's think step by step.\n"
    )
    assert second.startswith("Choose.\n\n")


def test_mbpp_takes_its_examples_and_questions_from_one_file(folder: Path) -> None:
    exam = prepare(find_task("mbpp"), folder)
    assert [item.values["task_id"] for item in exam.items] == ["11", "510"]
    shot = (
        "You are an expert Python programmer, and here is your task: Write a function to add 2. Your code should pass "
        "these tests:\n\nassert add(1) == 3\nassert add(2) == 4\n[BEGIN]\ndef add(x):\n  return x + 2\n[DONE]\n\n"
    )
    assert exam.items[0].text.startswith(shot)
    assert exam.items[0].text.endswith("assert add(1) == 12\nassert add(2) == 13\n[BEGIN]\n")


RIGHT_WRONG = [
    ("gsm8k", "He sells 1,000 - 982 = 18 eggs", "It is 19"),
    ("math", r"so $\boxed{\dfrac32}$", r"so $\boxed{\frac{2}{3}}$"),
    ("math", "Final Answer: The final answer is $1.5$. I hope it is correct.", "$1.5$"),
    ("math23k", "答案是1.5。", "答案是15"),
    ("math401", "1.5004", "1.502"),
]


@pytest.mark.parametrize(("task", "right", "wrong"), RIGHT_WRONG)
def test_answers(folder: Path, task: str, right: str, wrong: str) -> None:
    assert ask(folder, task, right).answers[0].scores == {"accuracy": 1.0}
    assert ask(folder, task, wrong).answers[0].scores == {"accuracy": 0.0}


def test_bbh_answers(folder: Path) -> None:
    scores = [one.scores["accuracy"] for one in ask(folder, "bbh", "Well. So the answer is (B).").answers]
    assert scores == [0.0, 1.0]
    scores = [one.scores["accuracy"] for one in ask(folder, "bbh", "So the answer is False.").answers]
    assert scores == [1.0, 0.0]


CODE = [
    ("humaneval", False, "    return a + b", "    return a - b"),
    (
        "humaneval",
        True,
        "Sure!\n```python\ndef add(a, b):\n    return a + b\n```\nDone.",
        "```\ndef add(a, b): pass\n```",
    ),
    ("humaneval", True, "return a + b", "I cannot."),
    ("humanevalpack", False, "    return a + b", "    return 1"),
    (
        "humanevalpack",
        True,
        "```python\ndef add(a, b):\n    return a + b\n```",
        "```python\nimport os\nos._exit(0)\n```",
    ),
]


@pytest.mark.parametrize(("task", "is_chat", "right", "wrong"), CODE)
def test_code(folder: Path, task: str, is_chat: bool, right: str, wrong: str) -> None:
    assert ask(folder, task, right, is_chat=is_chat, limits=Limits()).answers[0].scores == {"pass@1": 1.0}
    assert ask(folder, task, wrong, is_chat=is_chat, limits=Limits()).answers[0].scores == {"pass@1": 0.0}


def test_mbpp_code(folder: Path) -> None:
    result = ask(folder, "mbpp", "def add(x):\n    return x + 11", limits=Limits())
    assert [one.scores["pass@1"] for one in result.answers] == [1.0, 0.0]
    assert result.answers[1].note == "AssertionError"


def test_without_permission_no_program_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_megatron.evaluation.exam.run_program", lambda *_: pytest.fail("was run"))
    with pytest.raises(ValueError, match="not run unless it is allowed"):
        ask(folder, "humaneval", "    return a + b")


def test_react(folder: Path) -> None:
    first, second = prompts(folder, "react")
    assert first.startswith(
        "Answer the following questions as best you can. You have access to the following tools:\n\n"
    )
    assert (
        "weather: Call this tool to interact with the Weather API. What is the Weather API useful for? The weather "
        'of a city. Parameters: [{"name": "city", "required": true}] Format the arguments as a JSON object.\n\n'
        "search: Call"
    ) in first
    assert "should be one of [weather,search]\n" in first
    assert first.endswith("Begin!\n\nQuestion: Is it raining in Oslo?")
    assert second.endswith("Question: Hello!")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            'Thought: I ask.\nAction: weather\nAction Input: {"city":  "Oslo"}\n',
            {"tool selection": 1.0, "tool input rouge-l": 1.0, "false positives": 1.0},
        ),
        (
            "Thought: I ask.\nAction: search\nAction Input: Oslo",
            {"tool selection": 0.0, "tool input rouge-l": 0.0, "false positives": 1.0},
        ),
        ("Final Answer: Yes.", {"tool selection": 0.0, "tool input rouge-l": 0.0, "false positives": 0.0}),
    ],
)
def test_calls_of_tools(folder: Path, answer: str, expected: dict[str, float]) -> None:
    metrics = metrics_of(ask(folder, "react", answer))
    assert {name: metric.value for name, metric in metrics.items()} == expected
    assert [metric.count for metric in metrics.values()] == [1, 1, 1]


def test_calls_of_the_released_file(folder: Path) -> None:
    result = ask(folder, "react-released", 'Thought: x\nAction: Weather\nAction Input: {"city": "Bergen"}')
    assert result.exam.is_chat
    scores = result.answers[0].scores
    assert scores["tool selection"] == 1.0
    assert 0.5 < scores["tool input rouge-l"] < 1.0


def test_limit_is_of_each_group(folder: Path) -> None:
    exam = prepare(find_task("bbh"), folder, limit=1)
    assert [item.group for item in exam.items] == ["boolean", "dates"]
    assert exam.num_questions == 2
    assert [item.values["task_id"] for item in prepare(find_task("mbpp"), folder, limit=1).items] == ["11"]


def test_long_prompts_lose_their_beginning_and_are_counted(folder: Path) -> None:
    model, scripted = text_model(lambda prompt: " B", max_length=40)
    result = sit(prepare(find_task("mmlu"), folder), model, None)
    assert result.num_cut == 1
    assert result.answers[0].scores == {"accuracy": 1.0}
    assert all(text.endswith("D. 13\nAnswer:") and "The following" not in text for text in scripted.asked)
    with pytest.raises(
        ConfigError, match="--max-length=40: completions of 512 tokens leave no room for a prompt; give"
    ):
        sit(prepare(find_task("gsm8k"), folder), model, None)


def test_too_few_examples(tmp_path: Path) -> None:
    write_benchmarks(tmp_path)
    write_jsonl(tmp_path / "mmlu/dev.jsonl", FILES["mmlu/dev.jsonl"][:3])
    with pytest.raises(DataError, match=r"dev.jsonl: holds 3 examples of subject 'abstract_algebra', mmlu takes 5"):
        prepare(find_task("mmlu"), tmp_path)
    assert prepare(find_task("mmlu"), tmp_path, shots=3).items[0].text.count("Answer: B") == 3


TASK = """name: mine
about: sums
source: made up
kind: answer
test: {file: mine.jsonl}
fields: {sum: text, result: value}
question: "{sum} ="
scorer: number
target: "{result}"
stop: ["\\n"]
max_new_tokens: 5
"""


def test_a_task_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TASK, encoding="utf-8")
    write_jsonl(tmp_path / "mine.jsonl", [{"sum": "1 + {sum}", "result": 2}])
    model, scripted = text_model(lambda prompt: " 2")
    result = sit(prepare(find_task(str(path)), tmp_path), model, None)
    # A record's text is not looked into for places.
    assert scripted.asked == ["1 + {sum} ="]
    assert result.answers[0].scores == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{sum} =", "{summe} =", "mine.yaml: question: {summe} is none of the fields result, sum"),
        ("kind: answer", "kind: essay", r"kind=essay: .*\(.*mine.yaml:4\)"),
        ("kind: answer", "kind: code", "kind=code: `program` belongs to kind code, which needs it"),
        ("kind: answer", "kind: choice", "`choices` belong to kind choice"),
        ("max_new_tokens: 5", "max_new_tokens: 0", "max_new_tokens=0: must be at least 1"),
        ("file: mine.jsonl", "file: ../mine.jsonl", "test.file=../mine.jsonl: must be a path below"),
        ("about: sums\n", "", "about: is missing"),
        ("scorer: number", "scorer: numbers", "scorer=numbers"),
        ("max_new_tokens: 5", "max_new_tokens: 5\nshots: 2", "shots=2: needs `examples` and `answer`"),
        ("max_new_tokens: 5", "max_new_tokens: 5\naverage: groups", "average=groups: needs `group`"),
        ("max_new_tokens: 5", "max_new_token: 5", "max_new_token"),
        ("name: mine", "name: !!python/name:os.system mine", "tag"),
        ("name: mine", "name: [", "not valid YAML"),
    ],
)
def test_a_wrong_task_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TASK.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_task(path)


def test_an_unknown_task() -> None:
    with pytest.raises(ConfigError, match="--tasks=gsm8: no such task; did you mean gsm8k"):
        find_task("gsm8")
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file"):
        find_task("nowhere.yaml")
