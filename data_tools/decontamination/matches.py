"""What was found of a benchmark item in a text, and the text without it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """A stretch of text that stands in a benchmark item too."""

    benchmark: str
    item: str
    start: int
    """First character."""
    end: int
    """One behind the last character."""


def remove_spans(text: str, matches: Sequence[Match], margin: int = 0) -> str:
    """``text`` without what ``matches`` cover, and without ``margin`` characters on both sides of each.

    What stood before and behind a gap is joined by a newline.
    """
    pieces = []
    kept_from = 0
    for match in sorted(matches, key=lambda match: match.start):
        start = max(match.start - margin, 0)
        if start > kept_from:
            pieces.append(text[kept_from:start])
        kept_from = max(kept_from, match.end + margin)
    pieces.append(text[kept_from:])
    return "\n".join(stripped for piece in pieces if (stripped := piece.strip())) if matches else text


def report_line(text: str, match: Match, document: str, context: int = 60) -> dict[str, str | int]:
    """One line of the report, ready for JSON: which item, where, and what stands around it.

    Args:
        document: name of the document, for instance file:line.
        context: characters before and behind the match.
    """
    return {
        "benchmark": match.benchmark,
        "item": match.item,
        "document": document,
        "start": match.start,
        "end": match.end,
        "before": text[max(match.start - context, 0) : match.start],
        "matched": text[match.start : match.end],
        "after": text[match.end : match.end + context],
    }
