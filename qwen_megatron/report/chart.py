"""Line and area charts as inline SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 28
# Of a long run no more are drawn: the lowest and the highest point of each piece, so that no spike is lost.
MOST_PIECES = 600
# Values this many times apart are drawn on a logarithmic axis, where that is allowed.
LOG_RATIO = 30.0

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: For the legend.
        points: (step, value), steps rising.
        color: Number of the colour in the page's style.
        dots: Also draw the points.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Axes:
    """From values to places in the picture.

    Attributes:
        left, right: Steps at the edges.
        low, high: Values at the edges.
        is_log: The values' axis is logarithmic.
    """

    left: float
    right: float
    low: float
    high: float
    is_log: bool = False

    def x(self, step: float) -> float:
        """Place of a step, in pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        """Place of a value, in pixels from the top."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)


def line_chart(series: Sequence[Series], marks: Sequence[float] = (), *, from_zero: bool = False) -> str:
    """An SVG of several lines; "" if there is no point.

    Args:
        series: The lines.
        marks: Steps with a vertical line: starts.
        from_zero: The axis starts at 0, never logarithmic.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    axes = fitting_axes(points, from_zero=from_zero)
    lines = []
    for line in series:
        places = [f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in thinned(line.points)]
        if len(places) > 1:
            lines.append(f'<polyline class="line c{line.color}" points="{" ".join(places)}"/>')
        if line.dots or len(places) == 1:
            lines += [
                f'<circle class="dot c{line.color}" cx="{x}" cy="{y}" r="2.5"/>'
                for x, y in (place.split(",") for place in places)
            ]
    return legend([(line.name, line.color) for line in series]) + picture(axes, marks, lines)


def area_chart(names: Sequence[str], rows: Sequence[tuple[float, Sequence[float]]], marks: Sequence[float] = ()) -> str:
    """An SVG of values that add up, one on the other; "" if there is no row.

    Args:
        names: Of the values, from the bottom.
        rows: (step, values), steps rising.
        marks: Steps with a vertical line.
    """
    if not rows:
        return ""
    rows = averaged(rows)
    axes = fitting_axes([(step, sum(values)) for step, values in rows], from_zero=True)
    below = [0.0] * len(rows)
    areas = []
    for number in range(len(names)):
        above = [low + values[number] for low, (_, values) in zip(below, rows, strict=True)]
        upper = [f"{axes.x(step):.1f},{axes.y(value):.1f}" for (step, _), value in zip(rows, above, strict=True)]
        lower = [f"{axes.x(step):.1f},{axes.y(value):.1f}" for (step, _), value in zip(rows, below, strict=True)]
        areas.append(f'<polygon class="area c{number}" points="{" ".join([*upper, *reversed(lower)])}"/>')
        below = above
    return legend([(name, number) for number, name in enumerate(names)]) + picture(axes, marks, areas)


def fitting_axes(points: Sequence[Point], *, from_zero: bool) -> Axes:
    """Axes that hold all points."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    left, right = min(steps), max(steps)
    low, high = min(values), max(values)
    is_log = not from_zero and low > 0 and high / low > LOG_RATIO
    if from_zero:
        low, high = min(low, 0.0), high * 1.05
    elif is_log:
        low, high = low / 1.1, high * 1.1
    else:
        margin = 0.05 * (high - low)
        low, high = low - margin, high + margin
    if not high > low:
        spread = abs(low) * 0.05 or 1.0
        low, high = (0.0, high + spread) if from_zero else (low - spread, high + spread)
    return Axes(
        left=left, right=right if right > left else left + max(1.0, abs(left) * 1e-6), low=low, high=high, is_log=is_log
    )


def picture(axes: Axes, marks: Sequence[float], content: Sequence[str]) -> str:
    """The SVG with grid, numbers, marks of starts and the content."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for value in log_ticks(axes.low, axes.high) if axes.is_log else ticks(axes.low, axes.high, 5):
        y = f"{axes.y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{short(value)}</text>')
    for step in ticks(axes.left, axes.right, 10):
        if step.is_integer():
            x, below = f"{axes.x(step):.1f}", HEIGHT - BOTTOM + 18
            parts.append(f'<text class="tick" x="{x}" y="{below}" text-anchor="middle">{short(step)}</text>')
    for step in marks:
        if axes.left <= step <= axes.right:
            x = f"{axes.x(step):.1f}"
            parts.append(f'<line class="start" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return "".join([*parts, *content, "</svg>"])


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names beside their colours, where there is more than one."""
    if len(names) < 2:
        return ""
    items = "".join(f'<span><i class="c{color}"></i>{html.escape(name)}</span>' for name, color in names)
    return f'<p class="legend">{items}</p>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between low and high, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 12) if abs(step) > 1e-9 else number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between low and high, with 2 and 5 times them where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if low <= value <= high]


def short(value: float) -> str:
    """A number in few characters: 1.5k, 3M, 2e-05."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most twice `MOST_PIECES` points: of each piece the lowest and the highest, in their order."""
    if len(points) <= 2 * MOST_PIECES:
        return points
    kept = []
    for piece in pieces(points):
        values = [value for _, value in piece]
        kept += [piece[i] for i in sorted({values.index(min(values)), values.index(max(values))})]
    return kept


def averaged(rows: Sequence[tuple[float, Sequence[float]]]) -> Sequence[tuple[float, Sequence[float]]]:
    """At most `MOST_PIECES` rows, means of pieces."""
    if len(rows) <= MOST_PIECES:
        return rows
    return [
        (piece[0][0], [sum(values) / len(piece) for values in zip(*(row[1] for row in piece), strict=True)])
        for piece in pieces(rows)
    ]


def pieces(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """`MOST_PIECES` pieces of nearly equal length."""
    bounds = [len(rows) * i // MOST_PIECES for i in range(MOST_PIECES + 1)]
    return [rows[start:stop] for start, stop in pairwise(bounds)]
