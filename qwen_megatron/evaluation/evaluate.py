"""An evaluation from a checkpoint to its results."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_tools.io.atomic_file import atomic_output
from data_tools.io.progress import progress_bar
from qwen_megatron.errors import ConfigError, PlatformError
from qwen_megatron.evaluation.exam import ExamResult, sit
from qwen_megatron.evaluation.language_model import TextModel
from qwen_megatron.evaluation.prompts import Exam, prepare
from qwen_megatron.evaluation.results import FORMAT, as_json, sample_json, table
from qwen_megatron.evaluation.sandbox import Limits, check_sandbox
from qwen_megatron.evaluation.task_file import find_task

HARNESS = "lm-eval:"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is evaluated, checked before a model is loaded.

    Attributes:
        exams: Task files with their questions.
        harness: Tasks of lm-eval, as it names them.
        include: Folder of lm-eval's further task files.
        limit: Questions of a task at most.
        shots: Examples before a question, where given.
        is_chat: Whether questions are asked in chat.
        limits: Of generated programs; None if none may be run.
    """

    exams: tuple[Exam, ...]
    harness: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None
    is_chat: bool = False
    limits: Limits | None = None


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        results: Of task files.
        harness: What lm-eval returned; None if it was not asked.
    """

    results: tuple[ExamResult, ...]
    harness: dict[str, Any] | None


def make_plan(
    tasks: Sequence[str],
    folder: Path | None,
    *,
    include: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    is_chat: bool = False,
    limits: Limits | None = None,
) -> Plan:
    """Reads task files and questions, and asks whether this machine can do what they need.

    Args:
        tasks: Names and paths of task files; `lm-eval:NAME`.
        folder: Of the JSON Lines files.
        include, limit, shots, is_chat, limits: As in `Plan`.
    Raises:
        ConfigError: if a task is not known, has no data, or is not allowed to run code.
        DataError: from the questions.
        PlatformError: if lm-eval is not installed, or programs cannot be confined here.
    """
    harness = tuple(task.removeprefix(HARNESS) for task in tasks if task.startswith(HARNESS))
    files = [find_task(task) for task in dict.fromkeys(tasks) if not task.startswith(HARNESS)]
    if files and folder is None:
        raise ConfigError(
            f"--tasks={files[0].name}: its questions are read from files; give their folder, --data FOLDER"
        )
    code = [task.name for task in files if task.kind == "code"]
    if code and limits is None:
        raise ConfigError(
            f"--tasks={','.join(code)}: would run code that the model wrote, and nothing was run; allow it with "
            "--allow-code-execution (docs/evaluation.md says how it is confined)"
        )
    if harness and importlib.util.find_spec("lm_eval") is None:
        raise PlatformError(
            "lm-evaluation-harness is not installed; run: pip install 'qwen-megatron[evaluate]', or take task files"
        )
    exams = [prepare(task, folder, shots=shots, is_chat=is_chat, limit=limit) for task in files if folder is not None]
    if code:
        check_sandbox()
    return Plan(
        exams=tuple(exams),
        harness=harness,
        include=include,
        limit=limit,
        shots=shots,
        is_chat=is_chat,
        limits=limits,
    )


def carry_out(plan: Plan, model: TextModel, *, judges: bool = True) -> Report:
    """Asks a model everything. On several ranks all must ask the same.

    Args:
        plan: What is asked.
        model: Is asked.
        judges: Whether this rank scores the answers.
    Raises:
        DataError, PlatformError, ConfigError: from the tasks.
    """
    results = []
    for exam in plan.exams:
        size = len(exam.items) * (len(exam.task.choices) if exam.task.choices and not exam.is_chat else 1)
        with progress_bar(exam.task.name, size) as progress:
            results.append(sit(exam, model, plan.limits, judges=judges, advance=progress.advance))
    if not plan.harness:
        return Report(tuple(results), None)
    from qwen_megatron.evaluation.harness import HarnessModel, run_harness

    adapter = HarnessModel(model, is_chat=plan.is_chat)
    found = run_harness(adapter, plan.harness, include=plan.include, limit=plan.limit, shots=plan.shots)
    return Report(tuple(results), found)


def report_json(report: Report, source: Path) -> dict[str, Any]:
    """An evaluation as JSON values.

    Args:
        report: What was found.
        source: Of the model.
    """
    harness = report.harness
    return {
        "format": FORMAT,
        "source": str(source),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "qwen_megatron": importlib.metadata.version("qwen-megatron"),
        "tasks": [as_json(result) for result in report.results],
        "harness": None
        if harness is None
        else {
            "lm_eval": importlib.metadata.version("lm-eval"),
            "results": harness["results"],
            "versions": harness.get("versions", {}),
            "num_shots": harness.get("n-shot", {}),
        },
    }


def report_table(report: Report) -> list[str]:
    """Lines of a table in Markdown."""
    return table(report.results, {} if report.harness is None else report.harness["results"])


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes results, whole or not at all."""
    with atomic_output(path) as stream:
        stream.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def write_samples(path: Path, report: Report) -> None:
    """Writes every question with its answer, JSON Lines."""
    with atomic_output(path) as stream:
        for values in samples(report):
            text = json.dumps(values, ensure_ascii=False, default=str)
            stream.write(text.encode("utf-8", errors="surrogatepass") + b"\n")


def samples(report: Report) -> Iterator[dict[str, Any]]:
    """Every question with its answer as JSON values."""
    for result in report.results:
        for answer in result.answers:
            yield sample_json(result, answer)
    for task, found in (report.harness or {}).get("samples", {}).items():
        for sample in found:
            yield {"task": f"{HARNESS}{task}", **{key: sample[key] for key in sample if not callable(sample[key])}}
