"""HTML of plain things: text, tables, the facts of a run. Nothing that is given becomes markup."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qwen_megatron.report.numbers import numbers
from qwen_megatron.report.run_files import RunFiles, number

# Cells up to the one stay on one line, longer than the other they get a wide column.
SHORT, LONG = 28, 40


def text(value: object) -> str:
    """Any value as HTML text."""
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of any values, which scrolls sideways where the screen is narrow."""
    cells = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(value: object) -> str:
    """One cell of a table."""
    words = text(value)
    kind = "short" if len(words) <= SHORT else "long" if len(words) > LONG else ""
    return f'<td class="{kind}">{words}</td>' if kind else f"<td>{words}</td>"


def facts(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """The numbers to look at first: boxes for one run, a table for several."""
    columns = [dict(fact_items(run)) for run in runs]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    if len(runs) > 1:
        return table(("", *names), [(label, *(column.get(label, "") for column in columns)) for label in labels])
    boxes = "".join(f"<div><dt>{text(label)}</dt><dd>{text(columns[0][label])}</dd></div>" for label in labels)
    return f'<dl class="facts">{boxes}</dl>'


def fact_items(run: RunFiles) -> Iterable[tuple[str, str]]:
    """(label, value) of what the run knows."""
    found = numbers(run)
    steps, planned = found["steps"], found["planned_steps"]
    if steps is not None:
        yield "steps", f"{steps:,.0f}" + (f" of {planned:,.0f}" if planned is not None else "")
    yield from shown(found, "loss", "loss of the last step", "{:.4f}".format)
    for name, value in found["held_out_loss"].items():
        yield ("last held-out loss" if name == "held out" else f"last loss, {name}"), f"{value:.4f}"
    yield from shown(found, "tokens", "tokens", "{:,.0f}".format)
    yield from shown(found, "tokens_per_second", "tokens/s, median", "{:,.0f}".format)
    yield from shown(found, "model_flops_utilization", "MFU, median", "{:.1%}".format)
    yield from shown(found, "peak_memory_bytes", "largest memory of a rank", lambda size: f"{size / 2**30:.2f} GiB")
    yield from shown(found, "training_seconds", "time in steps", duration)
    if found["evaluation_seconds"]:
        yield "time in evaluations", duration(found["evaluation_seconds"])
    yield "starts", str(len(run.starts))
    for kind, label in (("failure", "failures"), ("spike", "spikes"), ("skipped", "skipped steps")):
        if kind in found["events"]:
            yield label, str(found["events"][kind])


def shown(found: dict[str, Any], name: str, label: str, form: Callable[[float], str]) -> Iterable[tuple[str, str]]:
    """The value in its form, if there is one."""
    value = number(found[name])
    if value is not None:
        yield label, form(value)


def duration(seconds: float) -> str:
    """Seconds as people say them, the two largest units: 3 d 4 h, 12 min 5 s, 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    raise AssertionError("a minute is the smallest")
