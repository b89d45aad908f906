"""Which rows are run together, so that little is lost to padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# Of the longest row of a group, the share that the shortest has at least.
SHORTEST = 0.8


def alike(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Places of rows of about the same length, the longest first: if memory runs out, it does so at once.

    Args:
        lengths: Of the rows, in tokens.
        most_tokens: Of a group, padding included; a longer row is a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        size = max(1, most_tokens // max(1, longest))
        group = [place for place in order[start : start + size] if lengths[place] >= SHORTEST * longest]
        yield group
        start += len(group)
