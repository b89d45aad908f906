"""What the charts of a page show: lines over steps, tokens and time, thinned so that a long run stays a small page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from qwen_megatron.report.numbers import held_out_curves
from qwen_megatron.report.run_files import Point, RunFiles, curve, number, section
from qwen_megatron.report.timeline import Clock, Event, events

# Of a long run no more are drawn: the lowest and the highest point of each piece, so that no spike is lost.
MOST_PIECES = 600
# Values this many times apart are drawn on a logarithmic axis at first.
LOG_RATIO = 30.0
MOST_EVENTS = 500
COLORS = 6
# Title, unit and factor of the charts that show one value of the steps' rows; whether the axis starts at 0.
CURVES = (
    ("learning_rate", "Learning rate", "", 1.0, False),
    ("grad_norm", "Gradient norm before clipping", "", 1.0, False),
    ("tokens_per_second", "Tokens a second", "tokens/s", 1.0, True),
    ("model_flops_utilization", "Model FLOPs utilisation, %", "%", 100.0, True),
    ("peak_memory_bytes", "Largest memory of a rank so far, GiB", "GiB", 2.0**-30, True),
    # Of PPO alone.
    ("reward", "Reward, mean score of a response", "", 1.0, False),
    ("kl", "Divergence from the reference model, nats a response", "nats", 1.0, True),
    ("entropy", "Entropy of the policy, nats a token", "nats", 1.0, True),
    ("clip_share", "Ratios beyond the clip, %", "%", 100.0, True),
    ("response_length", "Tokens of a response", "", 1.0, True),
    ("value_loss", "Loss of the value model", "", 1.0, False),
    ("rollout_seconds", "Seconds of the rollout", "s", 1.0, True),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: For the legend.
        color: Number of the colour in the page's style.
        held_out: Drawn dashed with its points, never smoothed.
        steps, tokens, seconds: Where its points stand on each of the horizontal axes.
        values: Their heights.
        means: Of the piece that each point stands for, to be smoothed; None where every step has its own point.
    """

    name: str
    color: int
    held_out: bool
    steps: Sequence[float]
    tokens: Sequence[float]
    seconds: Sequence[float]
    values: Sequence[float]
    means: Sequence[float] | None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart.

    Attributes:
        name: Of its elements in the page.
        title: For people.
        unit: Of its values, for the pointer.
        lines: At least one.
        from_zero: The axis starts at 0.
        stacked: Values add up; the lines have the same points.
        log: Whether the axis is logarithmic at first.
    """

    name: str
    title: str
    unit: str
    lines: Sequence[Line]
    from_zero: bool = False
    stacked: bool = False
    log: bool = False


def charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    """The charts of one run, or of several over each other; those without a point are left out.

    Args:
        runs: The runs.
        names: What to call each.
    """
    clocks = [Clock(run) for run in runs]
    found = [loss_chart(runs, names, clocks)]
    if len(runs) == 1:
        found.append(time_split(runs[0], clocks[0]))
    for key, title, unit, factor, from_zero in CURVES:
        lines = []
        for place, (run, clock) in enumerate(zip(runs, clocks, strict=True)):
            points = [(step, factor * value) for step, value in curve(run.steps, key)]
            lines.append(line(names[place] if len(runs) > 1 else title, points, clock, color=place))
        found.append(Chart(name=key, title=title, unit=unit, lines=lines, from_zero=from_zero))
    return [finished(chart) for chart in found if any(line.steps for line in chart.lines)]


def loss_chart(runs: Sequence[RunFiles], names: Sequence[str], clocks: Sequence[Clock]) -> Chart:
    """Training loss and that over each held-out corpus."""
    lines = []
    for place, (run, clock) in enumerate(zip(runs, clocks, strict=True)):
        before = f"{names[place]}: " if len(runs) > 1 else ""
        lines.append(line(f"{before}training", curve(run.steps, "loss"), clock, color=place))
        for count, (corpus, points) in enumerate(held_out_curves(run).items(), start=1):
            # Of several runs the colour tells the run.
            color = place if len(runs) > 1 else count
            lines.append(line(f"{before}{corpus}", points, clock, color=color, held_out=True))
    # Runs before version 0.1 do not say what their losses are.
    titles = {str(start.get("loss_title", "Loss, nats a token")) for run in runs for start in run.starts[-1:]}
    title = titles.pop() if len(titles) == 1 else "Loss"
    return Chart(name="loss", title=title, unit="nats" if "nats" in title else "", lines=lines)


def time_split(run: RunFiles, clock: Clock) -> Chart:
    """Where the time of a step goes: the mean over ranks of each phase, one on the other."""
    names = phases(run)
    rows = sorted(
        (step, [max(number(section(row, "phase_seconds").get(name)) or 0.0, 0.0) for name in names])
        for row in run.steps
        if (step := number(row.get("step"))) is not None and section(row, "phase_seconds")
    )
    bounds = pieces(len(rows))
    kept = [rows[start][0] for start, _ in bounds]
    # Means, not extremes: those of the phases would not add up to a step.
    heights = [
        [sum(rows[i][1][n] for i in range(start, stop)) / (stop - start) for start, stop in bounds]
        for n in range(len(names))
    ]
    lines = [
        placed(name, kept, found, None, clock, color=n)
        for n, (name, found) in enumerate(zip(names, heights, strict=True))
    ]
    return Chart(
        name="phases", title="Seconds a step, mean over ranks", unit="s", lines=lines, from_zero=True, stacked=True
    )


def phases(run: RunFiles) -> list[str]:
    """The phases of a step that took time, as many as there are colours; a run writes six."""
    names = dict.fromkeys(name for row in run.steps for name in section(row, "phase_seconds"))
    return [name for name in names if any(number(section(row, "phase_seconds").get(name)) for row in run.steps)][
        :COLORS
    ]


def line(name: str, points: Sequence[Point], clock: Clock, *, color: int, held_out: bool = False) -> Line:
    """A line of at most twice `MOST_PIECES` points: of each piece the lowest and the highest, in their order."""
    kept: list[Point] = []
    means: list[float] = []
    for start, stop in pieces(len(points), 2 * MOST_PIECES):
        piece = points[start:stop]
        heights = [value for _, value in piece]
        extremes = [piece[i] for i in sorted({heights.index(min(heights)), heights.index(max(heights))})]
        kept += extremes
        means += [sum(heights) / len(heights)] * len(extremes)
    steps, found = [step for step, _ in kept], [value for _, value in kept]
    thinned = means if len(kept) < len(points) else None
    return placed(name, steps, found, thinned, clock, color=color, held_out=held_out)


def placed(
    name: str,
    steps: Sequence[float],
    found: Sequence[float],
    means: Sequence[float] | None,
    clock: Clock,
    *,
    color: int,
    held_out: bool = False,
) -> Line:
    """A line whose points stand on all horizontal axes."""
    moments = [clock.at(step) for step in steps]
    return Line(
        name=name,
        color=color % COLORS,
        held_out=held_out,
        steps=steps,
        tokens=[tokens for tokens, _ in moments],
        seconds=[round(seconds, 3) for _, seconds in moments],
        values=[rounded(value) for value in found],
        means=None if means is None else [rounded(value) for value in means],
    )


def pieces(count: int, most: int = MOST_PIECES) -> list[tuple[int, int]]:
    """(start, stop) of `MOST_PIECES` pieces of nearly equal length; pieces of one if `count` is at most `most`."""
    if count <= most:
        return [(i, i + 1) for i in range(count)]
    return list(pairwise(count * i // MOST_PIECES for i in range(MOST_PIECES + 1)))


def rounded(value: float) -> float:
    """Seven digits: more than a picture shows, fewer than fill the page."""
    return float(f"{value:.7g}")


def finished(chart: Chart) -> Chart:
    """The chart without empty lines, on a logarithmic axis where its values are far apart."""
    lines = [line for line in chart.lines if line.steps]
    found = [value for line in lines for value in line.values]
    log = not chart.from_zero and min(found) > 0 and max(found) / min(found) > LOG_RATIO
    return Chart(**{**vars(chart), "lines": lines, "log": log})


def most_telling(found: Sequence[Event]) -> list[Event]:
    """At most `MOST_EVENTS`: the latest, checkpoints only where there is room."""
    kept = [event for event in found if event.kind != "checkpoint"][-MOST_EVENTS:]
    checkpoints = [event for event in found if event.kind == "checkpoint"]
    kept += checkpoints[max(0, len(checkpoints) - (MOST_EVENTS - len(kept))) :]
    return sorted(kept, key=lambda event: event.step)


def page_data(shown: Sequence[Chart], runs: Sequence[RunFiles], names: Sequence[str]) -> dict[str, Any]:
    """What the page's script draws, as JSON values."""
    marks = []
    for place, run in enumerate(runs):
        clock = Clock(run)
        for event in most_telling(events(run)):
            tokens, seconds = clock.at(event.step)
            marks.append({**asdict(event), "run": names[place], "tokens": tokens, "seconds": seconds})
    return {"charts": [asdict(chart) for chart in shown], "events": marks, "several": len(runs) > 1}
