"""A run as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from qwen_megatron.report.chart import Point, Series, area_chart, line_chart
from qwen_megatron.report.run_files import Row, RunFiles, differences, number, section

STYLE = """
:root { --text: #1c2430; --paper: #fff; --quiet: #5d6b7c; --rule: #dde3ea; --box: #f4f6f8;
  --c0: #2f6fb0; --c1: #c8553d; --c2: #d9a441; --c3: #4f8f5b; --c4: #8a63b0; --c5: #9aa5b1; }
@media (prefers-color-scheme: dark) { :root { --text: #dbe2ea; --paper: #14191f; --quiet: #94a3b3; --rule: #303a45;
  --box: #1e252d; --c0: #6aa5e0; --c1: #e07a63; --c2: #e3bc6d; --c3: #7fbf8b; --c4: #b492d6; --c5: #6d7a88; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; } td:nth-child(-n+2) { white-space: nowrap; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--box); border-radius: 6px; padding: .5rem .8rem; }
.facts b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.quiet, .facts span { color: var(--quiet); font-size: 13px; } .bad { color: var(--c1); font-weight: 600; }
.legend { margin: .2rem 0; font-size: 13px; } .legend span { margin-right: 1rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem; }
svg { width: 100%; height: auto; display: block; } .grid { stroke: var(--rule); }
.tick { font-size: 11px; fill: var(--quiet); } .start { stroke: var(--quiet); stroke-dasharray: 3 4; }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; } .area { fill-opacity: .85; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--box); padding: .6rem; font-size: 13px; }
"""
COLORS = "".join(
    f".line.c{i} {{ stroke: var(--c{i}); }} .area.c{i}, .dot.c{i} {{ fill: var(--c{i}); }} "
    f"i.c{i} {{ background: var(--c{i}); }}\n"
    for i in range(6)
)
# Titles of the charts that show one value of the steps' rows, with the value's unit.
CURVES = (
    ("learning_rate", "Learning rate", 1.0),
    ("grad_norm", "Gradient norm before clipping", 1.0),
    ("tokens_per_second", "Tokens a second", 1.0),
    ("model_flops_utilization", "Model FLOPs utilisation, %", 100.0),
    ("peak_memory_bytes", "Largest memory of a rank so far, GiB", 2.0**-30),
)


def page_of(run: RunFiles) -> str:
    """The page."""
    title = str(run.directory)
    starts = [step for row in run.starts if (step := number(row.get("step"))) is not None]
    body = [f"<h1>{text(title)}</h1>", ending(run), facts(run), "<h2>Loss, nats a token</h2>"]
    losses = [
        Series(name="training", points=curve(run.steps, "loss")),
        Series(name="held out", points=curve(run.evaluations, "eval_loss"), color=1, dots=True),
    ]
    body.append(line_chart([line for line in losses if line.points], starts) or '<p class="quiet">No step yet.</p>')
    body.append('<p class="quiet">Over steps; dotted lines are starts.</p>')
    body += time_split(run, starts)
    for name, heading, unit in CURVES:
        points = [(step, unit * value) for step, value in curve(run.steps, name)]
        if points:
            chart = line_chart([Series(name=name, points=points)], starts, from_zero=name in ("tokens_per_second",))
            body += [f"<h2>{text(heading)}</h2>", chart]
    body += [*restarts(run), *failures(run), *settings(run)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{COLORS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Any value as HTML text."""
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def curve(rows: Iterable[Row], name: str) -> list[Point]:
    """(step, value) of the rows that have the value, by step."""
    found = [(number(row.get("step")), number(row.get(name))) for row in rows]
    return sorted((step, value) for step, value in found if step is not None and value is not None)


def ending(run: RunFiles) -> str:
    """One line: how the last start ended."""
    last = max((step for step, _ in curve(run.steps, "loss")), default=0)
    if run.completion is not None:
        line = f"Ended in order after step {text(run.completion.get('step'))}: {text(run.completion.get('reason'))}."
    elif run.failures:
        line = f'<span class="bad">Failed; last step {last:.0f}.</span> See Failures.'
    else:
        line = f"Running, or ended without a word; last step {last:.0f}."
    if run.num_unreadable:
        line += f" {run.num_unreadable} lines or files could not be read and are left out."
    return f"<p>{line}</p>"


def facts(run: RunFiles) -> str:
    """The numbers to look at first."""
    config = section(run.starts[-1], "config") if run.starts else {}
    losses, held_out = curve(run.steps, "loss"), curve(run.evaluations, "eval_loss")
    speeds = [value for _, value in curve(run.steps, "tokens_per_second")]
    shares = [value for _, value in curve(run.steps, "model_flops_utilization")]
    tokens = [value for _, value in curve(run.steps, "consumed_tokens")]
    memory = [value for _, value in curve(run.steps, "peak_memory_bytes")]
    items = []
    if losses:
        planned = number(section(config, "training").get("train_iters"))
        items.append(("steps", f"{losses[-1][0]:,.0f}" + (f" of {planned:,.0f}" if planned is not None else "")))
        items.append(("loss of the last step", f"{losses[-1][1]:.4f}"))
    if held_out:
        items.append(("last held-out loss", f"{held_out[-1][1]:.4f}"))
    if tokens:
        items.append(("tokens", f"{tokens[-1]:,.0f}"))
    if speeds:
        items.append(("tokens/s, median", f"{statistics.median(speeds):,.0f}"))
    if shares:
        items.append(("MFU, median", f"{statistics.median(shares):.1%}"))
    if memory:
        items.append(("largest memory of a rank", f"{max(memory) / 2**30:.2f} GiB"))
    items.append(("starts", str(len(run.starts))))
    cells = "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in items)
    return f'<div class="facts">{cells}</div>'


def time_split(run: RunFiles, starts: Sequence[float]) -> list[str]:
    """Where the time of a step goes."""
    names = list(dict.fromkeys(name for row in run.steps for name in section(row, "phase_seconds")))
    # As many as there are colours; a run writes six.
    names = [name for name in names if any(number(section(row, "phase_seconds").get(name)) for row in run.steps)][:6]
    rows = sorted(
        (step, [max(number(section(row, "phase_seconds").get(name)) or 0.0, 0.0) for name in names])
        for row in run.steps
        if (step := number(row.get("step"))) is not None and section(row, "phase_seconds")
    )
    if not rows or not names:
        return []
    whole = sum(sum(values) for _, values in rows) or 1.0
    shares = [f"{name} {sum(values[i] for _, values in rows) / whole:.0%}" for i, name in enumerate(names)]
    return [
        "<h2>Seconds a step, mean over ranks</h2>",
        area_chart(names, rows, starts),
        f'<p class="quiet">Of all steps: {text(", ".join(shares))}. Communication is also waiting for other ranks.</p>',
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of any values."""
    lines = ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows)
    cells = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def restarts(run: RunFiles) -> list[str]:
    """The starts, and what changed from one to the next."""
    if not run.starts:
        return []
    rows, changes = [], []
    for count, row in enumerate(run.starts, start=1):
        packages = section(section(row, "environment"), "packages")
        commit = section(row, "environment").get("commit")
        versions = [f"{name} {version}" for name, version in packages.items()]
        if isinstance(commit, str):
            versions.append(f"commit {commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}")
        rows.append(
            (str(count), moment(row.get("time")), row.get("step"), row.get("host"), layout(row), ", ".join(versions))
        )
        if count > 1:
            before = run.starts[count - 2]
            for part in ("config", "environment"):
                found = differences(section(before, part), section(row, part))
                changes += [(str(count), key if part == "config" else f"{part}.{key}", *pair) for key, *pair in found]
    parts = ["<h2>Starts</h2>", table(("", "time", "from step", "host", "layout", "versions"), rows)]
    if len(run.starts) > 1:
        parts.append("<h2>What changed between starts</h2>")
        parts.append(table(("start", "setting", "before", "after"), changes) if changes else "<p>Nothing.</p>")
    return parts


def moment(value: object) -> object:
    """A time as starts.jsonl has it, for people; anything else as it is."""
    if isinstance(value, str) and value.endswith("+00:00"):
        return value.removesuffix("+00:00").replace("T", " ") + " UTC"
    return value


def layout(row: Row) -> str:
    """TP x PP x CP x DP of a start, axes of one left out."""
    parallel = section(section(row, "config"), "parallel")
    world = number(row.get("world_size"))
    sizes: list[tuple[str, Any]] = [
        ("TP", number(parallel.get("tensor_model_parallel_size")) or 1),
        ("PP", number(parallel.get("pipeline_model_parallel_size")) or 1),
        ("CP", number(parallel.get("context_parallel_size")) or 1),
    ]
    replica = sizes[0][1] * sizes[1][1] * sizes[2][1]
    if world is not None:
        sizes.append(("DP", world / replica))
    named = " x ".join(f"{name}{size:g}" for name, size in sizes if size != 1) or "one process"
    return f"{named} ({world:g} processes)" if world is not None and world > 1 else named


def failures(run: RunFiles) -> list[str]:
    """Records of failures, all they say."""
    if not run.failures:
        return []
    names = list(dict.fromkeys(name for row in run.failures for name in row))
    rows = [[row.get(name, "") for name in names] for row in run.failures]
    return ["<h2>Failures</h2>", table(names, rows)]


def settings(run: RunFiles) -> list[str]:
    """All settings of the last start."""
    if not run.starts:
        return []
    config = json.dumps(section(run.starts[-1], "config"), indent=1, ensure_ascii=False)
    return [
        "<h2>Settings of the last start</h2>",
        f"<details><summary>show</summary><pre>{text(config)}</pre></details>",
    ]
