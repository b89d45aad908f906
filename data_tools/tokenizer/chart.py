"""The table of `tokenizer_report` as a picture: one SVG file that needs nothing else."""

import html
from collections.abc import Mapping
from pathlib import Path

from data_tools.io.atomic_file import write_atomically
from data_tools.tokenizer.report import Compression

_COLOURS = ("#2f6fb0", "#c8553d", "#6b9e4b", "#b98b2d", "#7a5fa8", "#5d6b7c")
_LEFT, _BARS, _RIGHT = 70, 560, 60  # Pixels: names of languages, longest bar, its value.
_BAR, _GAP, _HEAD = 13, 12, 70


def write_chart(path: Path, table: Mapping[str, Compression]) -> None:
    """Writes the chart to ``path``.

    Raises:
        OSError: the folder cannot be written to.
    """
    write_atomically(path, render(table).encode("utf-8"))


def render(table: Mapping[str, Compression]) -> str:
    """Bars of bytes per token, a group for each language, a colour for each vocabulary.

    Source: Qwen Technical Report, figure 3.
    """
    vocabularies = list(dict.fromkeys(name for entry in table.values() for name in entry.tokens))
    best = max(entry.bytes_per_token(name) for entry in table.values() for name in entry.tokens)
    parts = [
        _label(20, 26, "Bytes of text per token, by language (more is better)", "font-size='16' font-weight='bold'"),
        *_legend(vocabularies),
    ]
    top = _HEAD
    for language, entry in table.items():
        middle = top + len(entry.tokens) * _BAR / 2 + 4
        parts.append(_label(_LEFT - 10, middle, language or "?", "text-anchor='end' font-weight='bold'"))
        for name in entry.tokens:
            value = entry.bytes_per_token(name)
            width, colour = _BARS * value / best, _COLOURS[vocabularies.index(name) % len(_COLOURS)]
            title = html.escape(f"{language}: {name} {value:.2f}, {entry.documents:,} documents")
            parts.append(
                f"<rect x='{_LEFT}' y='{top}' width='{width:.1f}' height='{_BAR - 2}' fill='{colour}'>"
                f"<title>{title}</title></rect>"
            )
            parts.append(_label(_LEFT + width + 6, top + _BAR - 3, f"{value:.2f}", "font-size='11'"))
            top += _BAR
        top += _GAP
    width = _LEFT + _BARS + _RIGHT
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{top}' viewBox='0 0 {width} {top}' "
        "font-family='system-ui, sans-serif' font-size='13' fill='#1c2430'>\n"
        f"<rect width='{width}' height='{top}' fill='white'/>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _legend(vocabularies: list[str]) -> list[str]:
    parts, x = [], 20.0
    for number, name in enumerate(vocabularies):
        parts.append(f"<rect x='{x}' y='40' width='12' height='12' fill='{_COLOURS[number % len(_COLOURS)]}'/>")
        parts.append(_label(x + 17, 51, name, ""))
        x += 40 + 8.0 * len(name)
    return parts


def _label(x: float, y: float, text: str, attributes: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {attributes}>{html.escape(text)}</text>"
