"""What a pipeline did, as one HTML page that needs nothing else."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.io.atomic_file import write_atomically
from data_tools.io.small_json import MissingFileError, SmallFileError
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
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dde3ea; vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
td.bar { width: 40%; } .fill { background: #2f6fb0; height: .9rem; border-radius: 2px; min-width: 1px; }
.lost { background: #c8553d; } .quiet { color: #5d6b7c; } td.reason { padding-left: 1.8rem; color: #5d6b7c; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; } .facts b { display: block;
  font-size: 1.4rem; font-variant-numeric: tabular-nums; }
pre { max-height: 15rem; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f6f8;
  padding: .6rem; margin: .3rem 0;
  font-size: 13px; }
@media (prefers-color-scheme: dark) { body { color: #dbe2ea; background: #14191f; } pre { background: #1e252d; }
  th, td { border-color: #303a45; } .quiet, td.reason { color: #94a3b3; } }
"""


def write_report(output: Path) -> Path:
    """Writes OUTPUT/report.html: funnel by stage and reason, lengths, languages, sources, tokens, examples.

    Raises:
        DataError: no pipeline has finished there.
    """
    path = output / SUMMARY
    try:
        page = render(read_summary(output), str(output))
    except MissingFileError as error:
        raise DataError(f"{path}: not there; a report is made of a finished run: qwen-data run") from error
    except SmallFileError as error:
        raise DataError(f"{error}; run the pipeline again") from error
    write_atomically(output / REPORT, page.encode("utf-8", errors="backslashreplace"))
    return output / REPORT


def render(summary: Mapping[str, Any], title: str) -> str:
    """The page of a run's summary."""
    stages: list[dict[str, Any]] = summary["stages"]
    # Statistics of documents are taken by every stage that writes documents; the last one of these counts.
    last = [stage for stage in stages if stage["statistics"]["by_length"]][-1:]
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="quiet">qwen-data {_text(summary["tool_version"])}, {_text(summary["created"])}</p>',
        _facts(stages),
        "<h2>Funnel</h2>",
        _funnel(stages),
    ]
    for stage in last:
        statistics = stage["statistics"]
        parts += [f"<h2>Languages after {_text(stage['name'])}</h2>", _shares(statistics["by_language"], "not asked")]
        parts += [f"<h2>Sources after {_text(stage['name'])}</h2>", _shares(statistics["by_source"], "none")]
        parts += [f"<h2>Lengths after {_text(stage['name'])}</h2>", _lengths(statistics["by_length"])]
    for stage in stages:
        if stage["tokens"] and not stage["shares"]:
            parts += ["<h2>Tokens</h2>", _numbers("corpus", "tokens", stage["tokens"])]
        if stage["shares"]:
            percent = {name: 100 * share for name, share in stage["shares"].items()}
            parts += ["<h2>Shares of training</h2>", _numbers("corpus", "% of tokens", percent)]
            seen = {name: round(epochs * stage["tokens"][name]) for name, epochs in stage["epochs"].items()}
            parts += ["<h2>Tokens of training</h2>", _numbers("corpus", "tokens", seen)]
            parts += ["<h2>Epochs</h2>", _numbers("corpus", "passes over the corpus", stage["epochs"])]
    for stage in stages:
        if stage["matches"]:
            parts += [f"<h2>Benchmarks found by {_text(stage['name'])}</h2>", _matches(stage["matches"])]
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
    cells = "".join(
        f'<th class="number">{_text(name[1:])}</th>' if name.startswith("#") else f"<th>{_text(name)}</th>"
        for name in head
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


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
    return _table(["stage", "#in", "#out", "#% of in", "share of all records"], rows)


def _percent(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    if part and abs(percent) < 0.05:
        return "&lt;0.1"
    return f"{percent:.1f}".replace("-", "&minus;")


def _matches(table: Mapping[str, Sequence[int]]) -> str:
    rows = [_row(_text(name), [_count(documents), _count(matches)], "") for name, (documents, matches) in table.items()]
    note = '<p class="quiet">*.matches.jsonl beside the shards lists every match: item, document, place, context.</p>'
    return _table(["benchmark", "#documents", "#matches"], rows) + note


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
    return _table(["name", "#documents", "#MB", "#% of bytes", ""], rows)


def _lengths(table: Mapping[str, int]) -> str:
    most = max(table.values())
    present = sorted(map(int, table))
    rows = []
    for bits in range(present[0], present[-1] + 1):
        count = table.get(str(bits), 0)
        rows.append(_row(f"{2**bits // 2:,} to {2**bits - 1:,}", [_count(count)], _bar(count / most)))
    return _table(["characters", "#documents", ""], rows)


def _numbers(name: str, unit: str, table: Mapping[str, float]) -> str:
    most = max(max(table.values()), 1e-12)
    rows = [_row(_text(key), [_count(value)], _bar(value / most)) for key, value in table.items()]
    return _table([name, f"#{unit}", ""], rows)


def _examples(stage: Mapping[str, Any]) -> str:
    parts = [f"<h3>{_text(stage['name'])}</h3>"]
    for reason, entries in stage["examples"].items():
        parts.append(f"<details><summary>{_text(reason)} ({_count(stage['rejected'].get(reason, 0))})</summary>")
        for entry in entries:
            detail = f" &ndash; {_text(entry['detail'])}" if entry["detail"] else ""
            parts.append(f'<p class="quiet">{_text(entry["id"])}{detail}</p>')
            if entry["text"]:
                parts.append(f"<pre>{_text(entry['text'])}</pre>")
        parts.append("</details>")
    return "".join(parts)
