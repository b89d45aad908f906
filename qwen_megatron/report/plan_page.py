"""A plan as one HTML page that needs nothing else: memory, time, the pipeline's timeline, layouts beside each other.

Its pictures are drawn here; nothing runs in the browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_megatron.planning.schedule import Task, timeline
from qwen_megatron.report.elements import duration, table, text
from qwen_megatron.report.page import asset, digest

GIB = 2.0**30
WIDTH, ROW, LABEL = 720, 20, 64
# Name, keys of the plan, colour of the page's style.
MEMORY = (
    ("weights", ("weights", "other_models"), 0),
    ("gradients", ("gradients",), 3),
    ("optimizer", ("optimizer",), 2),
    ("activations", ("activations",), 1),
    ("passing", (), 4),
    ("context, collectives", ("reserved",), 5),
)
TIME = (
    ("products", ("products",), 0),
    ("attention", ("attention",), 3),
    ("moving bytes, optimizer", ("memory", "optimizer"), 2),
    ("starting operations", ("launches",), 5),
    ("communication", ("tensor", "context", "transfers", "data"), 1),
    ("pipeline bubble", ("bubble",), 4),
)
# Micro-batches and stages that a timeline shows.
MOST_MICROBATCHES, MOST_STAGES = 16, 16
STYLE = """
.chart { width: 100%; height: auto; } .chart text { font: 11px system-ui, sans-serif; fill: var(--text); }
.chart .limit { stroke: var(--text); stroke-dasharray: 4 3; } .area.back { fill-opacity: .55; }
.narrow { overflow-x: auto; } .narrow .chart { min-width: 36rem; }
"""

Row = Mapping[str, Any]
Part = tuple[str, float, int]


def plan_page(plan: Row, title: str) -> str:
    """The page about a plan.

    Args:
        plan: As `qwen-megatron plan --json` prints it.
        title: What was planned, as text.
    """
    layouts = plan["layouts"] or [plan["closest"]]
    best = layouts[0]
    body = [f"<h1>{text(title)}</h1>", facts(plan, best)]
    if not plan["layouts"]:
        body.append('<p class="bad">No layout fits; this is the one that needs least.</p>')
    body += [
        f"<pre>{text(' '.join(best['overrides']))}</pre>",
        section("Memory of a rank, by pipeline stage", legend(MEMORY), memory_chart(plan, best)),
        section("Time of a step", legend(TIME), time_chart([best], [""])),
        time_table(best),
        pipeline(best),
    ]
    if len(layouts) > 1:
        names = [layout_name(layout) for layout in layouts]
        body += [section("Layouts, seconds a step", legend(TIME), time_chart(layouts, names)), layouts_table(layouts)]
    body += ["<h2>Not counted</h2>", f"<ul>{''.join(f'<li>{text(line)}</li>' for line in plan['left_out'])}</ul>"]
    return page(title, "\n".join(body))


def page(title: str, body: str) -> str:
    """The HTML document around a body; the browser runs nothing."""
    style = asset("page.css") + STYLE
    policy = f"default-src 'none'; style-src {digest(style)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def facts(plan: Row, best: Row) -> str:
    """The numbers to look at first."""
    failures = plan["failures"]
    found = {
        "days, without a stop": days(best),
        "cost, with stops": f"{millions(best)} million $",
        "seconds a step": f"{best['step_seconds']:.3g}",
        "MFU": f"{best['mfu']:.1%}",
        "TFLOP/s a GPU": f"{best['tflops']:.0f}",
        "tokens a day": f"{best['tokens_per_day'] / 1e9:.4g} billion",
        "fullest rank": f"{best['largest_memory_bytes'] / GIB:.1f} of {plan['usable_memory_bytes'] / GIB:.1f} GiB",
        "a stop is expected in": duration(failures["between_seconds"]),
        "save every": duration(failures["best_interval_seconds"]),
        "goodput": f"{failures['goodput']:.1%}",
    }
    boxes = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in found.items())
    return f'<dl class="facts">{boxes}</dl>'


def days(layout: Row) -> str:
    """To the recipe's tokens; where it counts epochs nobody knows."""
    return "-" if layout["days"] is None else f"{layout['days']:.1f}"


def millions(layout: Row) -> str:
    """Of them, 10^6 US$."""
    return "-" if layout["cost"] is None else f"{layout['cost'] / 1e6:.3g}"


def section(title: str, *parts: str) -> str:
    """A heading with what follows."""
    return "\n".join([f"<h2>{text(title)}</h2>", *parts])


def legend(parts: Sequence[tuple[str, Sequence[str], int]]) -> str:
    """Colours and what they stand for."""
    items = "".join(f'<span><i class="c{color}"></i>{text(name)}</span>' for name, _, color in parts)
    return f'<p class="legend">{items}</p>'


def memory_parts(memory: Row) -> list[Part]:
    """Parts of a rank's memory in GiB."""
    passing = max(memory["loss"], memory["work"])
    return [
        (name, (sum(memory[key] for key in keys) if keys else passing) / GIB, color) for name, keys, color in MEMORY
    ]


def memory_chart(plan: Row, best: Row) -> str:
    """A bar for each stage; many stages alike are one."""
    rows: list[tuple[str, list[Part]]] = []
    stages = best["memory_by_rank"]
    alike: list[Row] = []
    for memory in [*stages, None]:
        if alike and (memory is None or memory["total"] != alike[0]["total"]):
            first, last = alike[0]["stage"], alike[-1]["stage"]
            rows.append((f"stage {first}" if first == last else f"{first} to {last}", memory_parts(alike[0])))
            alike = []
        if memory is not None:
            alike.append(memory)
    usable = plan["usable_memory_bytes"] / GIB
    return bars(rows, unit="GiB", limit=usable, title="Memory of a rank of each stage")


def time_parts(layout: Row) -> list[Part]:
    """Parts of a step in seconds."""
    times = layout["time_by_part"]
    return [(name, sum(times[key] for key in keys), color) for name, keys, color in TIME]


def time_chart(layouts: Sequence[Row], names: Sequence[str]) -> str:
    """A bar for each layout."""
    rows = [(name, time_parts(layout)) for name, layout in zip(names, layouts, strict=True)]
    return bars(rows, unit="s", limit=None, title="Time of a step by part")


def time_table(layout: Row) -> str:
    """Every part in seconds."""
    total = layout["step_seconds"]
    rows = [
        (name, f"{seconds:.4f}", f"{seconds / total:.1%}")
        for name, seconds in sorted(layout["time_by_part"].items(), key=lambda item: -item[1])
    ]
    return f"<details><summary>numbers</summary>{table(('part', 'seconds', 'share'), rows)}</details>"


def bars(rows: Sequence[tuple[str, Sequence[Part]]], *, unit: str, limit: float | None, title: str) -> str:
    """Horizontal bars of parts, with their sums behind them.

    Args:
        rows: Name and parts of each.
        unit: Of the parts.
        limit: Where a line is drawn.
        title: For those who do not see it.
    """
    label = LABEL if any(name for name, _ in rows) else 0
    label = max([label, *(7 * len(name) for name, _ in rows)]) if label else 0
    most = max([sum(size for _, size, _ in parts) for _, parts in rows] + ([limit] if limit else []))
    scale = (WIDTH - label - 70) / most
    drawn = []
    for place, (name, parts) in enumerate(rows):
        top, left = place * ROW, float(label)
        drawn.append(f'<text x="0" y="{top + 14}">{text(name)}</text>')
        for part, size, color in parts:
            if size > 0:
                drawn.append(
                    f'<rect class="area c{color}" x="{left:.1f}" y="{top + 2}" width="{size * scale:.1f}" '
                    f'height="{ROW - 4}"><title>{text(f"{name} {part}: {size:.3g} {unit}")}</title></rect>'
                )
            left += size * scale
        whole = sum(size for _, size, _ in parts)
        behind = left if limit is None else max(left, label + limit * scale)
        drawn.append(f'<text x="{behind + 5:.1f}" y="{top + 14}">{whole:.3g} {unit}</text>')
    height = len(rows) * ROW
    if limit is not None:
        x = label + limit * scale
        drawn.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return svg(height, drawn, title)


def svg(height: int, drawn: Sequence[str], title: str) -> str:
    """A picture."""
    return (
        f'<div class="narrow" tabindex="0"><svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{text(title)}">{"".join(drawn)}</svg></div>'
    )


def pipeline(best: Row) -> str:
    """The timeline of the pipeline's first micro-batches, forward passes full, backward passes pale."""
    layout = best["layout"]
    stages, pieces = layout["pipeline"], layout["virtual_pipeline"] or 1
    if stages == 1:
        return ""
    if stages > MOST_STAGES:
        return section("Pipeline", f'<p class="quiet">{stages} stages are too many to draw.</p>')
    whole = layout["num_microbatches"]
    count = min(whole, max(MOST_MICROBATCHES // stages, 1) * stages)
    count = max(count // stages, 1) * stages if pieces > 1 else count
    tasks = timeline(stages, pieces, count, 1.0 / pieces, 2.0 / pieces)
    note = f"{count} of {whole} micro-batches of a step" + (f", {pieces} pieces of every stage" if pieces > 1 else "")
    colors = '<span><i class="c0"></i>forward</span><span><i class="c1"></i>backward</span>'
    return section(
        "Pipeline", f'<p class="legend">{colors}</p><p class="quiet">{text(note)}</p>', timeline_chart(tasks, stages)
    )


def timeline_chart(tasks: Sequence[Task], stages: int) -> str:
    """A row for each stage."""
    scale = (WIDTH - LABEL) / max(task.end for task in tasks)
    drawn = [f'<text x="0" y="{stage * ROW + 14}">stage {stage}</text>' for stage in range(stages)]
    for task in tasks:
        width = (task.end - task.start) * scale
        name = f"micro-batch {task.microbatch}, piece {task.piece}"
        color = f"c{1 if task.is_backward else 0}{' back' if task.piece % 2 else ''}"
        drawn.append(
            f'<rect class="area {color}" x="{LABEL + task.start * scale:.1f}" y="{task.stage * ROW + 2}" '
            f'width="{max(width - 0.5, 0.3):.1f}" height="{ROW - 4}"><title>{text(name)}</title></rect>'
        )
    return svg(stages * ROW, drawn, "When each stage works")


def layout_name(layout: Row) -> str:
    """A layout in a few letters."""
    sizes = layout["layout"]
    names = {"TP": "tensor", "PP": "pipeline", "VPP": "virtual_pipeline", "CP": "context", "DP": "data"}
    shown = " ".join(f"{name}{sizes[key]}" for name, key in names.items() if (sizes[key] or 1) > 1)
    again = " again" if sizes["recompute"] == "full" else ""
    return f"{shown or 'one'} x{sizes['micro_batch_size']}{again}"


def layouts_table(layouts: Sequence[Row]) -> str:
    """The layouts in numbers, and the settings that make each."""
    head = ("layout", "GiB", "s/step", "MFU", "days", "million $", "limited by")
    rows = [
        (
            layout_name(layout),
            f"{layout['largest_memory_bytes'] / GIB:.1f}",
            f"{layout['step_seconds']:.3g}",
            f"{layout['mfu']:.1%}",
            days(layout),
            millions(layout),
            layout["limit"],
        )
        for layout in layouts
    ]
    ways = "".join(f"<p>{text(layout_name(one))}</p><pre>{text(' '.join(one['overrides']))}</pre>" for one in layouts)
    return f"{table(head, rows)}<details><summary>settings of each</summary>{ways}</details>"
