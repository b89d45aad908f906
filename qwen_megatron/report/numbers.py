"""The numbers to look at first, of one run or of several beside each other; and every row as a table for others."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from qwen_megatron.report.run_files import Point, Row, RunFiles, curve, number, section
from qwen_megatron.report.timeline import Clock, events, tokens_by_corpus

# What a spreadsheet would take for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def numbers(run: RunFiles) -> dict[str, Any]:
    """What `report --json` prints: plain JSON values, null where the run does not know.

    Returns:
        `steps` done and `planned_steps`, `loss` of the last step, `held_out_loss` by corpus, `tokens`,
        `tokens_per_second` and `model_flops_utilization` (medians), `peak_memory_bytes` of a rank, `training_seconds`
        and `evaluation_seconds`, `corpora` with tokens and epochs, `events` counted by kind, and how it `ended`.
    """
    clock, losses = Clock(run), curve(run.steps, "loss")
    config = section(run.starts[-1], "config") if run.starts else {}
    counted: dict[str, int] = {}
    for event in events(run):
        counted[event.kind] = counted.get(event.kind, 0) + 1
    memory = values(run.steps, "peak_memory_bytes")
    return {
        "run": str(run.directory),
        "steps": whole(last(curve(run.steps, "step"))),
        "planned_steps": whole(number(section(config, "training").get("train_iters"))),
        "loss": last(losses),
        "lowest_loss": min((value for _, value in losses), default=None),
        "held_out_loss": {name: last(points) for name, points in held_out_curves(run).items()},
        "tokens": whole(clock.tokens[-1]) if clock.tokens else None,
        "tokens_per_second": median(values(run.steps, "tokens_per_second")),
        "model_flops_utilization": median(values(run.steps, "model_flops_utilization")),
        "peak_memory_bytes": whole(max(memory, default=None)),
        "training_seconds": clock.seconds[-1] if clock.seconds else None,
        "evaluation_seconds": sum(values(run.evaluations, "eval_seconds")),
        "corpora": {
            name: {"tokens": whole(tokens), "epochs": epochs}
            for name, (tokens, epochs) in tokens_by_corpus(run, clock).items()
        },
        "events": counted,
        "ended": None if run.completion is None else {key: run.completion.get(key) for key in ("reason", "step")},
    }


def held_out_curves(run: RunFiles) -> dict[str, list[Point]]:
    """Loss over each held-out corpus by its name; `held out` is the end of the training corpora."""
    by_name: dict[str, list[Row]] = {}
    for row in run.evaluations:
        corpus = row.get("corpus")
        by_name.setdefault(corpus if isinstance(corpus, str) else "held out", []).append(row)
    return {name: points for name, rows in by_name.items() if (points := curve(rows, "eval_loss"))}


def values(rows: Iterable[Row], name: str) -> list[float]:
    """The values of that name, in the order of steps."""
    return [value for _, value in curve(rows, name)]


def last(points: Sequence[Point]) -> float | None:
    """The value of the last step."""
    return points[-1][1] if points else None


def whole(value: float | None) -> int | None:
    """A count as a whole number; None stays None."""
    return None if value is None else round(value)


def median(found: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(found) if found else None


def as_csv(runs: Sequence[RunFiles]) -> str:
    """Every row of a step or an evaluation, one line each, with a column for each name that occurs.

    Members of objects have columns of their own, `phase_seconds.forward`; the first column is the run.
    """
    rows = [
        {"run": str(run.directory), "row": kind, **flat(row)}
        for run in runs
        for kind, rows in (("step", run.steps), ("evaluation", run.evaluations))
        for row in rows
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writerow({name: cell(name) for name in writer.fieldnames})
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def flat(row: Row) -> dict[str, Any]:
    """A row whose objects became dotted names."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": deeper for inner, deeper in value.items()}
        else:
            found[name] = value
    return found


def cell(value: object) -> object:
    """A value as a CSV cell: numbers and null as they are, texts never as a formula."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"'{words}" if words.startswith(FORMULA) else words
