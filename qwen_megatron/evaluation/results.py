"""Results of an evaluation: metrics with standard errors, JSON, and a table beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_megatron.evaluation.exam import MAIN_METRIC, Answer, ExamResult
from qwen_megatron.evaluation.paper import PAPER, PaperNumber

# Of the JSON file; grows when a field changes its meaning.
FORMAT = 1


@dataclass(frozen=True)
class Metric:
    """A mean over questions, or over groups of them.

    Attributes:
        value: 0 to 1.
        stderr: Standard error; None for fewer than two questions.
        count: Questions it is taken over.
    """

    value: float
    stderr: float | None
    count: int


def metrics_of(result: ExamResult) -> dict[str, Metric]:
    """Metrics of a task, its main one first."""
    names = dict.fromkeys([MAIN_METRIC[result.exam.task.kind]])
    names |= dict.fromkeys(name for answer in result.answers for name in answer.scores)
    found = {}
    for name in names:
        values = [(answer.item.group, answer.scores[name]) for answer in result.answers if name in answer.scores]
        if values:
            found[name] = averaged(values, by_group=result.exam.task.average == "groups")
    return found


def averaged(values: Sequence[tuple[str, float]], *, by_group: bool) -> Metric:
    """The mean of (group, value), of all values or of the groups' means; groups are taken as fixed."""
    groups: dict[str, list[float]] = {}
    for group, value in values:
        groups.setdefault(group if by_group else "", []).append(value)
    parts = [mean_and_variance(part) for part in groups.values()]
    mean = math.fsum(part for part, _ in parts) / len(parts)
    if any(variance is None for _, variance in parts):
        return Metric(mean, None, len(values))
    return Metric(mean, math.sqrt(math.fsum(variance or 0.0 for _, variance in parts)) / len(parts), len(values))


def mean_and_variance(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of some values, and the variance of that mean; None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def as_json(result: ExamResult) -> dict[str, Any]:
    """A task's results as JSON values."""
    exam = result.exam
    groups = sorted({answer.item.group for answer in result.answers} - {""})
    main = MAIN_METRIC[exam.task.kind]
    return {
        "task": exam.task.name,
        "form": "chat" if exam.is_chat else "plain",
        "shots": exam.shots,
        "metrics": {name: asdict(metric) for name, metric in metrics_of(result).items()},
        "average": exam.task.average,
        "groups": {
            group: asdict(averaged(of_group(result.answers, group, main), by_group=False))
            for group in groups
            if of_group(result.answers, group, main)
        },
        "num_asked": len(exam.items),
        "num_questions": exam.num_questions,
        "num_cut_prompts": result.num_cut,
        "source": exam.task.source,
        "limits": None if result.limits is None else asdict(result.limits),
        "paper": [
            {"model": one.model, "metric": one.metric, "percent": one.value, "source": one.source}
            for one in comparable(result)
        ],
    }


def of_group(answers: Sequence[Answer], group: str, name: str) -> list[tuple[str, float]]:
    """(group, value) of one group's questions."""
    return [(group, one.scores[name]) for one in answers if one.item.group == group and name in one.scores]


def sample_json(result: ExamResult, answer: Answer) -> dict[str, Any]:
    """One question with its answer as JSON values."""
    return {
        "task": result.exam.task.name,
        "place": answer.item.place,
        "group": answer.item.group,
        "prompt": answer.item.text,
        "target": answer.item.target,
        "completion": answer.completion,
        "scores": answer.scores,
        "note": answer.note,
    }


def comparable(result: ExamResult) -> list[PaperNumber]:
    """The paper's numbers of the same task, form and shots; none where not all questions were asked."""
    exam = result.exam
    if len(exam.items) < exam.num_questions:
        return []
    form = "chat" if exam.is_chat else "plain"
    return [one for one in PAPER if (one.task, one.form, one.shots) == (exam.task.name, form, exam.shots)]


def table(results: Sequence[ExamResult], harness: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table in Markdown: per cent, beside the numbers of the paper for the same form and shots.

    Args:
        results: Of task files.
        harness: Of lm-evaluation-harness: task -> metric -> value, as it names them.
    """
    columns = list(dict.fromkeys(one.model for result in results for one in comparable(result)))
    rows = [["task", "form", "shots", "metric", "questions", "result", *columns]]
    notes = []
    for result in results:
        exam = result.exam
        paper = {(one.model, one.metric): f"{one.value:.1f}" for one in comparable(result)}
        for name, metric in metrics_of(result).items():
            cells = [paper.get((model, name), "") for model in columns]
            form = "chat" if exam.is_chat else "plain"
            rows.append([exam.task.name, form, str(exam.shots), name, str(metric.count), percent(metric), *cells])
        if len(exam.items) < exam.num_questions:
            notes.append(
                f"{exam.task.name}: {len(exam.items)} of {exam.num_questions} questions; not to be compared with others"
            )
        if result.num_cut:
            notes.append(f"{exam.task.name}: {result.num_cut} prompts lost their beginning; see --max-length")
        notes += [f"{one.model}: {one.source}" for one in comparable(result)]
    for task, found in harness.items():
        rows += [[f"lm-eval:{task}", "", "", *row, *[""] * len(columns)] for row in harness_rows(found)]
    return [*aligned(rows), *(["", *dict.fromkeys(notes)] if notes else [])]


def percent(metric: Metric) -> str:
    """A metric in per cent with its standard error."""
    return f"{100 * metric.value:.1f}" + ("" if metric.stderr is None else f" ± {100 * metric.stderr:.1f}")


def harness_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Metric, questions and result of a task of the harness, whose metrics are not all shares of one."""
    rows = []
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{name}_stderr,{kind}")
        count = str(found.get("sample_len", ""))
        shown = f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, int | float) else "")
        rows.append([name if kind == "none" else f"{name} ({kind})", count, shown])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown of a table whose first row is its heading."""
    widths = [max(3, *(len(row[at]) for row in rows)) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
