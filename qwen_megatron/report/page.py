"""Runs as one HTML page that needs nothing else: its style, its script and its data stand in it.

What the files of a run say is data: it becomes text of the page or JSON that the script draws, and a content security
policy lets the browser run that one script and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from qwen_megatron.report.charts import Chart, Line, charts, page_data
from qwen_megatron.report.elements import facts, table, text
from qwen_megatron.report.run_files import RunFiles
from qwen_megatron.report.sections import (
    changes,
    corpora,
    differing_settings,
    ending,
    failures,
    happened,
    phase_shares,
    settings,
    starts,
)

# Of each line, in the table for those who do not look at charts.
ROWS_IN_WORDS = 12

CONTROLS = """<form class="controls" hidden aria-label="Charts">
<label>over <select id="axis"><option value="steps">steps</option><option value="tokens">tokens</option>
<option value="seconds">time in steps</option></select></label>
<label>smoothing <input id="smoothing" type="range" min="0" max="0.99" step="0.01" value="0">
<output id="smoothing-value" for="smoothing">0</output></label>
<label><input id="events" type="checkbox" checked> events</label>
<button id="whole" type="button" hidden>whole run</button>
</form>
<noscript><p class="quiet">The charts need scripts; the numbers under each of them do not.</p></noscript>"""


def page_of(*runs: RunFiles) -> str:
    """The page about a run, or about several beside each other, the first one's colours first."""
    names = names_of(runs)
    shown = charts(runs, names)
    title = " and ".join(names)
    body = [
        f"<h1>{text(title)}</h1>",
        *(ending(run, name, several=len(runs) > 1) for run, name in zip(runs, names, strict=True)),
    ]
    body += [facts(runs, names), CONTROLS if shown else '<p class="quiet">No step yet.</p>']
    body += [figure(chart) + (phase_shares(runs[0]) if chart.stacked else "") for chart in shown]
    body += [corpora(runs, names), happened(runs, names)]
    if len(runs) > 1:
        body.append(differing_settings(runs, names))
    for run, name in zip(runs, names, strict=True):
        of = f" of {name}" if len(runs) > 1 else ""
        body += [starts(run, of), changes(run, of), failures(run, of), settings(run, of)]
    data = json.dumps(page_data(shown, runs, names), ensure_ascii=True, separators=(",", ":"))
    return document(title, "\n".join(part for part in body if part), data)


def document(title: str, body: str, data: str) -> str:
    """The HTML document around a body, with style, script and data.

    Args:
        title: As text.
        body: As HTML.
        data: JSON in ASCII.
    """
    style, script = asset("page.css"), asset("page.js")
    policy = f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}"
    # Inside a script element only these could end it; JSON may spell any character by its number.
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def asset(name: str) -> str:
    """A file of the package's folder `assets`."""
    return resources.files("qwen_megatron.report").joinpath("assets", name).read_text(encoding="utf-8")


def digest(content: str) -> str:
    """A source expression that allows this inline content only (Content Security Policy 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def names_of(runs: Sequence[RunFiles]) -> list[str]:
    """What to call each run: its path; beside each other the parts of the paths in which they differ."""
    paths = [Path(run.directory) for run in runs]
    if len({path.name for path in paths}) == len(paths) > 1:
        return [path.name for path in paths]
    return [str(path) for path in paths]


def figure(chart: Chart) -> str:
    """A chart's place in the page, with what it shows in words."""
    ident = f"chart-{chart.name}"
    log = f'<label><input type="checkbox" data-log{" checked" if chart.log else ""}> log scale</label>'
    legend = "".join(
        f'<span><i class="c{line.color}{" dashed" if line.held_out else ""}"></i>{text(line.name)}</span>'
        for line in chart.lines
    )
    return (
        f'<figure id="{ident}">\n<figcaption><h2 id="{ident}-title">{text(chart.title)}</h2>'
        f"{log if not (chart.from_zero or chart.stacked) else ''}</figcaption>\n"
        + (f'<p class="legend">{legend}</p>\n' if len(chart.lines) > 1 else "")
        + f'<div class="plot" tabindex="0" role="img" aria-labelledby="{ident}-title" '
        f'aria-describedby="{ident}-words"></div>\n'
        f'<p class="for-readers" id="{ident}-words">{text(" ".join(map(in_words, chart.lines)))} '
        "Arrow keys read single values.</p>\n"
        '<p class="for-readers" aria-live="polite"></p>\n'
        f"<details><summary>numbers</summary>{numbers_table(chart)}</details>\n</figure>"
    )


def in_words(line: Line) -> str:
    """A sentence about a line."""
    low, high = min(line.values), max(line.values)
    if len(line.values) == 1:
        return f"{line.name}: {low:.5g} at step {line.steps[0]:g}."
    return (
        f"{line.name}: from {line.values[0]:.5g} at step {line.steps[0]:g} to {line.values[-1]:.5g} at step "
        f"{line.steps[-1]:g}, between {low:.5g} and {high:.5g}."
    )


def numbers_table(chart: Chart) -> str:
    """A dozen points of each line, the first and the last among them."""
    rows = []
    for line in chart.lines:
        count = len(line.steps)
        places = sorted({round(i * (count - 1) / (ROWS_IN_WORDS - 1)) for i in range(ROWS_IN_WORDS)})
        rows += [
            (line.name, f"{line.steps[i]:,.0f}", f"{line.tokens[i]:,.0f}", f"{line.values[i]:.6g}") for i in places
        ]
    return table(("", "step", "tokens", chart.unit or "value"), rows)
