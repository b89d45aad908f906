"""How the values that the rules measure are spread around their thresholds."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_tools.filters.rules import Verdict

# Bins by value / threshold: below 0.25, up to 0.5, ..., 3 and more; the threshold is an edge.
EDGES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
NUM_BINS = len(EDGES) + 1


class RuleHistograms:
    """Counts texts by value and threshold, rule by rule.

    Rules with a threshold of 0 have no scale and are left out. Where CJK texts have another threshold they are counted
    by that one; the one that is shown is that of the others.
    """

    def __init__(self) -> None:
        self._rules: dict[str, dict[str, Any]] = {}

    def add(self, verdict: Verdict) -> None:
        """Counts a batch."""
        values = verdict.values if verdict.asked is True else verdict.values[verdict.asked]
        if verdict.limit <= 0 or not len(values):
            return
        rule = self._rules.setdefault(
            verdict.reason, {"limit": float(verdict.limit), "is_least": verdict.is_least, "counts": [0] * NUM_BINS}
        )
        # Below a least value drops, at a greatest one does not: the threshold belongs to the side that is kept.
        bins = np.searchsorted(np.array(EDGES) * verdict.limit, values, side="right" if verdict.is_least else "left")
        counts = np.bincount(bins, minlength=NUM_BINS)
        rule["counts"] = [a + int(b) for a, b in zip(rule["counts"], counts, strict=True)]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Reason -> limit, is_least, counts of the bins; for a manifest."""
        return dict(self._rules)


def merged(into: dict[str, dict[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds what `RuleHistograms.as_dict` gave for another part."""
    for reason, rule in other.items():
        known = into.setdefault(reason, {**rule, "counts": [0] * NUM_BINS})
        known["counts"] = [a + b for a, b in zip(known["counts"], rule["counts"], strict=True)]
