"""Numbers that the paper and the released README give for the released models: in per cent, with form and shots.

Only what stands in the source that is named is here. The paper's table lists an earlier Qwen-1.8B; the numbers here are
those of the README, of the weights that were released.
"""

from __future__ import annotations

from dataclasses import dataclass

README = "README of github.com/QwenLM/Qwen, 30 November 2023"
TABLE_2 = "Qwen Technical Report (arXiv 2309.16609), table 2"
TOOLS = "README of github.com/QwenLM/Qwen, Chinese Tool-Use Benchmark, version 20231206"

SHOTS = {"mmlu": 5, "ceval": 5, "gsm8k": 8, "math": 4, "humaneval": 0, "mbpp": 3, "bbh": 3, "cmmlu": 5}
METRICS = {"humaneval": "pass@1", "mbpp": "pass@1"}
BASE_MODELS: dict[str, tuple[str, tuple[float, ...]]] = {
    "Qwen-1.8B": (README, (45.3, 56.1, 32.3, 2.3, 15.2, 14.2, 22.3, 52.1)),
    "Qwen-7B": (TABLE_2, (58.2, 63.5, 51.7, 11.6, 29.9, 31.6, 45.0, 62.2)),
    "Qwen-14B": (TABLE_2, (66.3, 72.1, 61.3, 24.8, 32.3, 40.8, 53.4, 71.0)),
    "Qwen-72B": (README, (77.4, 83.3, 78.9, 35.2, 35.4, 52.2, 67.7, 83.6)),
}
TOOL_METRICS = ("tool selection", "tool input rouge-l", "false positives")
CHAT_MODELS = {
    "Qwen-1.8B-Chat": (85.0, 83.9, 27.6),
    "Qwen-7B-Chat": (95.5, 90.0, 11.6),
    "Qwen-14B-Chat": (96.9, 91.7, 5.6),
    "Qwen-72B-Chat": (98.2, 92.7, 1.1),
}


@dataclass(frozen=True)
class PaperNumber:
    """A model's number for a task.

    Attributes:
        model: The released model.
        task: Name of the task file.
        form: plain or chat.
        shots: Examples before a question.
        metric: As results name it.
        value: In per cent.
        source: Where it stands.
    """

    model: str
    task: str
    form: str
    shots: int
    metric: str
    value: float
    source: str


PAPER = (
    *(
        PaperNumber(model, task, "plain", shots, METRICS.get(task, "accuracy"), value, source)
        for model, (source, values) in BASE_MODELS.items()
        for (task, shots), value in zip(SHOTS.items(), values, strict=True)
    ),
    *(
        PaperNumber(model, "react-released", "chat", 0, metric, value, TOOLS)
        for model, values in CHAT_MODELS.items()
        for metric, value in zip(TOOL_METRICS, values, strict=True)
    ),
)
