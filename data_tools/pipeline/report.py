"""What a pipeline did, as one HTML page that needs nothing else."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.filters.histograms import EDGES
from data_tools.io.atomic_file import write_atomically
from data_tools.io.small_json import MissingFileError, SmallFileError
from data_tools.pipeline.heavy_rules import heavy_rules
from data_tools.pipeline.run import SUMMARY
from data_tools.pipeline.summary_file import read_summary

REPORT = "report.html"
_WHERE = (
    "A few of each reason. All are in *.dropped.jsonl.zst beside the shards of their stage; rejected.jsonl of the "
    "first stage lists the records that cannot be read."
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde3ea; vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.bar { width: 35%; } .fill { background: #2f6fb0; height: .9rem; border-radius: 2px; min-width: 1px; }
.lost { background: #c8553d; } .quiet { color: #5d6b7c; } td.reason { padding-left: 1.8rem; color: #5d6b7c; }
.warning { border-left: 4px solid #d08a1d; padding: .2rem .8rem; background: #fdf6e9; }
p, td:first-child, summary { overflow-wrap: anywhere; } td.heavy { color: #a8431f; font-weight: 600; }
.histogram { display: flex; align-items: flex-end; gap: 2px; height: 2.2rem; min-width: 6rem; }
.histogram i { flex: 1; min-height: 1px; background: #2f6fb0; } .histogram i.lost { background: #c8553d; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; } .facts b { display: block;
  font-size: 1.4rem; font-variant-numeric: tabular-nums; }
pre { max-height: 15rem; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f6f8;
  padding: .6rem; margin: .3rem 0; font-size: 13px; }
@media (max-width: 620px) { .bar { display: none; } td.reason { padding-left: .8rem; } body { font-size: 14px; }
  th, td { padding: .25rem .4rem; } td:first-child { min-width: 8rem; } }
@media (prefers-color-scheme: dark) { body { color: #dbe2ea; background: #14191f; } pre { background: #1e252d; }
  th, td { border-color: #303a45; } .quiet, td.reason { color: #94a3b3; } .warning { background: #2c2415; }
  td.heavy { color: #f0946f; } }
"""
# Columns of a table of sources or languages; the others are added up.
_MOST_COLUMNS = 8


def write_report(output: Path) -> Path:
    """Writes OUTPUT/report.html: funnel, reasons by source and language, lengths, tokens, times, examples.

    Raises:
        DataError: no pipeline has finished there.
    """
    path = output / SUMMARY
    try:
        page = render(read_summary(output), output)
    except MissingFileError as error:
        raise DataError(f"{path}: not there; a report is made of a finished run: qwen-data run") from error
    except SmallFileError as error:
        raise DataError(f"{error}; run the pipeline again") from error
    write_atomically(output / REPORT, page.encode("utf-8", errors="backslashreplace"))
    return output / REPORT


def render(summary: Mapping[str, Any], output: Path) -> str:
    """The page of a run's summary."""
    stages: list[dict[str, Any]] = summary["stages"]
    title = summary["pipeline"]
    where = f"{output}; qwen-data {summary['tool_version']}, {summary['created']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="quiet">{_text(where)}</p>',
        _facts(stages),
        *(f'<p class="warning">{_text(rule)}.</p>' for stage in stages for rule in heavy_rules(stage)),
        "<h2>Funnel</h2>",
        _funnel(stages),
    ]
    # Statistics of documents are taken by every stage that writes documents; the last one of these counts.
    for stage in [stage for stage in stages if stage["statistics"]["by_length"]][-1:]:
        statistics = stage["statistics"]
        parts += [f"<h2>Languages after {_text(stage['name'])}</h2>", _shares(statistics["by_language"], "not asked")]
        parts += [f"<h2>Sources after {_text(stage['name'])}</h2>", _shares(statistics["by_source"], "none")]
        parts += [f"<h2>Lengths after {_text(stage['name'])}</h2>", _lengths(statistics["by_length"])]
    corpora = [stage for stage in stages if stage["tokens"]][-1:]
    parts += [f"<h2>Corpora</h2>{_corpora(stage)}" for stage in corpora]
    for stage in stages:
        if stage["matches"]:
            parts += [f"<h2>Benchmarks found by {_text(stage['name'])}</h2>", _matches(stage["matches"])]
    for stage in stages:
        if stage["clusters"]:
            parts += [f"<h2>Near duplicates found by {_text(stage['name'])}</h2>", *map(_cluster, stage["clusters"])]
    for by, unnamed in (("source", "none"), ("language", "not asked")):
        tables = [_dropped_by(stage, by, unnamed) for stage in stages]
        if any(tables):
            parts += [f"<h2>Dropped by {by}</h2>", *tables]
    for stage in stages:
        if stage["measured"]:
            parts += [f"<h2>Values measured by {_text(stage['name'])}</h2>", _measured(stage["measured"])]
    parts += ["<h2>Time</h2>", _times(stages, summary["timings"])]
    parts += [
        "<h2>Dropped documents</h2>",
        f'<p class="quiet">{_WHERE}</p>',
        *(_examples(stage) for stage in stages if stage["examples"]),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _count(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _bar(share: float, kind: str = "") -> str:
    return f'<td class="bar"><div class="fill {kind}" style="width:{100 * share:.2f}%"></div></td>'


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    """A table; a name in its head begins with # over numbers and with | over bars."""
    kinds = {"#": "number", "|": "bar"}
    cells = "".join(
        f'<th class="{kinds[name[0]]}">{_text(name[1:])}</th>' if name[:1] in kinds else f"<th>{_text(name)}</th>"
        for name in head
    )
    body = f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="table"><table>{body}</table></div>'


def _row(name: str, numbers: Sequence[str], bar: str, kind: str = "") -> str:
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f'<tr><td class="{kind}">{name}</td>{cells}{bar}</tr>'


def _facts(stages: Sequence[Mapping[str, Any]]) -> str:
    """The run in a few large numbers."""
    documents = [stage for stage in stages if stage["statistics"]["by_length"]][-1:]
    facts = [("records read", _count(stages[0]["records_in"])), ("documents left", _count(stages[-1]["records_out"]))]
    for stage in documents:
        num_bytes = sum(entry[1] for entry in stage["statistics"]["by_source"].values())
        facts.append(("MB of text left", f"{num_bytes / 1e6:,.1f}"))
    tokens: Mapping[str, int] = next((stage["tokens"] for stage in reversed(stages) if stage["tokens"]), {})
    if tokens:
        facts.append(("tokens", _count(sum(tokens.values()))))
    return '<div class="facts">' + "".join(f"<div><b>{value}</b>{name}</div>" for name, value in facts) + "</div>"


def _funnel(stages: Sequence[Mapping[str, Any]]) -> str:
    whole = max(1, stages[0]["records_in"])
    rows = []
    for stage in stages:
        records_in, records_out = stage["records_in"], stage["records_out"]
        numbers = [_count(records_in), _count(records_out), _percent(records_out, records_in)]
        rows.append(_row(f"<b>{_text(stage['name'])}</b>", numbers, _bar(min(1.0, records_out / whole))))
        if stage["copied"]:
            copied = stage["copied"]
            numbers = ["", f"+{_count(copied)}", f"+{_percent(copied, records_in)}"]
            rows.append(_row("copies", numbers, _bar(min(1.0, copied / whole)), "reason"))
        for reason, count in sorted(stage["rejected"].items(), key=lambda item: -item[1]):
            numbers = ["", f"&minus;{_count(count)}", _percent(-count, records_in)]
            rows.append(_row(_text(reason), numbers, _bar(count / whole, "lost"), "reason"))
    return _table(["stage", "#in", "#out", "#% of in", "|share of all records"], rows)


def _percent(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    if part and abs(percent) < 0.05:
        return "&lt;0.1"
    return f"{percent:.1f}".replace("-", "&minus;")


def _matches(table: Mapping[str, Sequence[int]]) -> str:
    rows = [_row(_text(name), [_count(documents), _count(matches)], "") for name, (documents, matches) in table.items()]
    note = '<p class="quiet">*.matches.jsonl beside the shards lists every match: item, document, place, context.</p>'
    return _table(["benchmark", "#documents", "#matches"], rows) + note


def _cluster(cluster: Mapping[str, Any]) -> str:
    """One of the largest clusters: what is kept, and some of what it stands for."""
    parts = [f"<details><summary>{_count(cluster['size'])} documents, one is kept</summary>"]
    for document in cluster["documents"]:
        what = "kept" if document["is_kept"] else "dropped"
        parts.append(f'<p class="quiet">{_text(document["id"])} &ndash; {what}</p><pre>{_text(document["text"])}</pre>')
    return "".join([*parts, "</details>"])


def _shares(table: Mapping[str, Sequence[int]], unnamed: str) -> str:
    num_bytes = max(1, sum(entry[1] for entry in table.values()))
    rows = [
        _row(
            _text(name or unnamed),
            [_count(entry[0]), f"{entry[1] / 1e6:,.2f}", f"{100 * entry[1] / num_bytes:.1f}"],
            _bar(entry[1] / num_bytes),
        )
        for name, entry in sorted(table.items(), key=lambda item: -item[1][1])
    ]
    return _table(["name", "#documents", "#MB", "#% of bytes", "|"], rows)


def _lengths(table: Mapping[str, int]) -> str:
    most = max(table.values())
    present = sorted(map(int, table))
    rows = []
    for bits in range(present[0], present[-1] + 1):
        count = table.get(str(bits), 0)
        rows.append(_row(f"{2**bits // 2:,} to {2**bits - 1:,}", [_count(count)], _bar(count / most)))
    return _table(["characters", "#documents", "|"], rows)


def _corpora(stage: Mapping[str, Any]) -> str:
    """Tokens of each corpus, and what training sees of it if there is a mixture."""
    rows = []
    most = max(1, *stage["tokens"].values())
    for name, tokens in stage["tokens"].items():
        numbers = [_count(tokens)]
        if stage["shares"]:
            share, epochs = stage["shares"].get(name, 0.0), stage["epochs"].get(name, 0.0)
            numbers += [f"{100 * share:.2f}", f"{epochs:.2f}", _count(round(epochs * tokens))]
        rows.append(_row(_text(name), numbers, _bar(tokens / most)))
    seen = ["#% of training", "#epochs", "#tokens seen"] if stage["shares"] else []
    return _table(["corpus", "#tokens", *seen, "|"], rows)


def _times(stages: Sequence[Mapping[str, Any]], timings: Mapping[str, Mapping[str, float]]) -> str:
    """Seconds of each stage, and its speed over the text that came to it."""
    rows, before = [], 0
    most = max([1e-9, *(entry.get("seconds", 0.0) for entry in timings.values())])
    for stage in stages:
        num_bytes = sum(entry[1] for entry in stage["statistics"]["by_source"].values())
        text = before or num_bytes  # The first stage is measured by what it leaves.
        before = num_bytes or before
        seconds = timings.get(stage["name"], {}).get("seconds")
        if seconds is None:
            continue
        numbers = [f"{seconds:,.1f}", f"{text / 1e6:,.1f}", f"{text / 1e6 / max(seconds, 1e-3):,.1f}"]
        rows.append(_row(_text(stage["name"]), numbers, _bar(seconds / most)))
    note = '<p class="quiet">Of the run that did the stage; all workers together, starting them included.</p>'
    return _table(["stage", "#seconds", "#MB of text", "#MB/s", "|"], rows) + note


def _measured(table: Mapping[str, Mapping[str, Any]]) -> str:
    """For each rule how many documents lie how far from its threshold."""
    names = ["&lt; 0.25", *(f"&ndash; {edge:g}" for edge in EDGES[1:]), f"&gt; {EDGES[-1]:g}"]
    threshold = EDGES.index(1.0)
    rows = []
    for reason, rule in table.items():
        most, cells = max(1, *rule["counts"]), []
        for number, count in enumerate(rule["counts"]):
            is_dropped = (number <= threshold) == rule["is_least"]
            height = f"height:{2.2 * count / most:.2f}rem"
            title = f"{names[number]} of the threshold: {count:,} documents"
            cells.append(f'<i class="{"lost" if is_dropped else "kept"}" style="{height}" title="{title}"></i>')
        sign = "at least" if rule["is_least"] else "at most"
        rows.append(
            f'<tr><td>{_text(reason)}</td><td class="number">{sign} {rule["limit"]:,g}</td>'
            f'<td><div class="histogram">{"".join(cells)}</div></td></tr>'
        )
    note = (
        f'<p class="quiet">Documents by value / threshold, {", ".join(names)}; red: the rule drops them. Every rule is '
        "asked about every document.</p>"
    )
    return note + _table(["rule", "#threshold", "documents"], rows)


def _dropped_by(stage: Mapping[str, Any], by: str, unnamed: str) -> str:
    """Reasons by source or language: how many documents each takes, and which share of those that came."""
    dropped: Mapping[str, Mapping[str, int]] = stage["statistics"].get(f"dropped_by_{by}", {})
    came = {name: entry[0] for name, entry in stage["statistics"][f"by_{by}"].items()}
    for counts in dropped.values():
        for name, count in counts.items():
            came[name] = came.get(name, 0) + count
    columns = sorted(came, key=lambda name: (-came[name], name))[:_MOST_COLUMNS]
    if not dropped or not any(columns):
        return ""
    rows = []
    for reason, counts in sorted(dropped.items(), key=lambda item: -sum(item[1].values())):
        cells = [_dropped_cell(counts.get(name, 0), came[name]) for name in columns]
        if len(came) > len(columns):
            others = set(came) - set(columns)
            cells.append(_dropped_cell(sum(counts.get(name, 0) for name in others), sum(came[name] for name in others)))
        rows.append(f"<tr><td>{_text(reason)}</td>{''.join(cells)}</tr>")
    names = [f"#{name or unnamed} ({came[name]:,})" for name in columns]
    more = ["#others"] if len(came) > len(columns) else []
    return f"<h3>{_text(stage['name'])}</h3>" + _table(["reason", *names, *more], rows)


def _dropped_cell(count: int, came: int) -> str:
    heavy = " heavy" if came and count > came / 5 else ""
    shown = f'{_count(count)} <span class="quiet">{_percent(count, came)}%</span>' if count else ""
    return f'<td class="number{heavy}">{shown}</td>'


def _examples(stage: Mapping[str, Any]) -> str:
    parts = [f"<h3>{_text(stage['name'])}</h3>"]
    for reason, entries in sorted(stage["examples"].items(), key=lambda item: -stage["rejected"].get(item[0], 0)):
        parts.append(f"<details><summary>{_text(reason)} ({_count(stage['rejected'].get(reason, 0))})</summary>")
        for entry in entries:
            detail = f" &ndash; {_text(entry['detail'])}" if entry["detail"] else ""
            parts.append(f'<p class="quiet">{_text(entry["id"])}{detail}</p>')
            if entry["text"]:
                parts.append(f"<pre>{_text(entry['text'])}</pre>")
        parts.append("</details>")
    return "".join(parts)
