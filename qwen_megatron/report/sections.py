"""The sections of a page that are words and tables: how a run ended, what happened, its starts and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwen_megatron.report.charts import most_telling, phases
from qwen_megatron.report.elements import table, text
from qwen_megatron.report.run_files import Row, RunFiles, curve, differences, moment, number, section
from qwen_megatron.report.timeline import Clock, events, tokens_by_corpus


def ending(run: RunFiles, name: str, *, several: bool) -> str:
    """One line: how the last start ended."""
    last = max((step for step, _ in curve(run.steps, "step")), default=0)
    if run.completion is not None:
        line = f"Ended in order after step {text(run.completion.get('step'))}: {text(run.completion.get('reason'))}."
    elif run.failures:
        line = f'<span class="bad">Failed; last step {last:.0f}.</span> See Failures.'
    else:
        line = f"Running, or ended without a word; last step {last:.0f}."
    if run.num_unreadable:
        line += f" {run.num_unreadable} lines or files could not be read and are left out."
    return f"<p>{text(name) + ': ' if several else ''}{line}</p>"


def phase_shares(run: RunFiles) -> str:
    """Shares of the phases in all steps."""
    names = phases(run)
    sums = [
        sum(max(number(section(row, "phase_seconds").get(name)) or 0.0, 0.0) for row in run.steps) for name in names
    ]
    whole = sum(sums) or 1.0
    shares = ", ".join(f"{name} {value / whole:.0%}" for name, value in zip(names, sums, strict=True))
    return f'<p class="quiet">Of all steps: {text(shares)}. Communication is also waiting for other ranks.</p>'


def corpora(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Tokens and epochs that each corpus gave."""
    rows = [
        (*([name] if len(runs) > 1 else []), corpus, f"{tokens:,.0f}", "" if epochs is None else f"{epochs:.2f}")
        for run, name in zip(runs, names, strict=True)
        for corpus, (tokens, epochs) in tokens_by_corpus(run, Clock(run)).items()
    ]
    head = (*(["run"] if len(runs) > 1 else []), "corpus", "tokens", "epochs")
    return f"<h2>Tokens of each corpus</h2>{table(head, rows)}" if rows else ""


def happened(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """What happened besides training, by run and step."""
    rows = [
        (*([name] if len(runs) > 1 else []), f"{event.step:,.0f}", event.kind, event.text)
        for run, name in zip(runs, names, strict=True)
        for event in most_telling(events(run))
    ]
    if not rows:
        return ""
    listed = table((*(["run"] if len(runs) > 1 else []), "step", "event", ""), rows)
    return (
        f"<h2>Events</h2><details{' open' if len(rows) <= 20 else ''}><summary>{len(rows)}</summary>{listed}</details>"
    )


def starts(run: RunFiles, of: str) -> str:
    """The starts: when, from which step, where and with what."""
    rows = []
    for count, row in enumerate(run.starts, start=1):
        packages = section(section(row, "environment"), "packages")
        commit = section(row, "environment").get("commit")
        versions = [f"{name} {version}" for name, version in packages.items()]
        if isinstance(commit, str):
            versions.append(f"commit {commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}")
        rows.append(
            (str(count), moment(row.get("time")), row.get("step"), row.get("host"), layout(row), ", ".join(versions))
        )
    listed = table(("", "time", "from step", "host", "layout", "versions"), rows)
    return f"<h2>Starts{text(of)}</h2>{listed}" if rows else ""


def changes(run: RunFiles, of: str) -> str:
    """What changed from one start to the next."""
    if len(run.starts) < 2:
        return ""
    rows = []
    for count, (before, row) in enumerate(zip(run.starts, run.starts[1:], strict=False), start=2):
        for part in ("config", "environment"):
            found = differences(section(before, part), section(row, part))
            rows += [(str(count), key if part == "config" else f"{part}.{key}", *pair) for key, *pair in found]
    listed = table(("start", "setting", "before", "after"), rows) if rows else "<p>Nothing.</p>"
    return f"<h2>What changed between starts{text(of)}</h2>{listed}"


def differing_settings(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """The settings in which the last starts of runs differ from that of the first run."""
    configs = [section(run.starts[-1], "config") if run.starts else {} for run in runs]
    keys = dict.fromkeys(key for config in configs[1:] for key, _, _ in differences(configs[0], config))
    rows = [(key, *(at(config, key) for config in configs)) for key in keys]
    listed = table(("setting", *names), rows) if rows else "<p>None.</p>"
    return f"<h2>Settings that differ</h2>{listed}"


def at(config: Row, key: str) -> object:
    """The value of a dotted key of sections; null where there is none."""
    name, _, rest = key.partition(".")
    value = config.get(name)
    return at(value, rest) if rest and isinstance(value, dict) else value


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


def failures(run: RunFiles, of: str) -> str:
    """Records of failures, all they say."""
    if not run.failures:
        return ""
    names = list(dict.fromkeys(name for row in run.failures for name in row))
    rows = [[row.get(name, "") for name in names] for row in run.failures]
    return f"<h2>Failures{text(of)}</h2>{table(names, rows)}"


def settings(run: RunFiles, of: str) -> str:
    """All settings of the last start."""
    if not run.starts:
        return ""
    config = json.dumps(section(run.starts[-1], "config"), indent=1, ensure_ascii=False)
    return (
        f"<h2>Settings of the last start{text(of)}</h2>"
        f"<details><summary>show</summary><pre>{text(config)}</pre></details>"
    )
