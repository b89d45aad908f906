"""Rules that take so much of one source that they are worth a second look."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Of the documents of a source that come to a stage.
_MOST = 0.2
# A rule that drops one of three documents says nothing.
_FEWEST_DOCUMENTS = 20
# What duplicates, other languages or low scores take is what their stages are for.
_JUDGING = "filter"


@dataclass(frozen=True)
class HeavyRule:
    """A rule of a stage that drops more than a fifth of a source."""

    stage: str
    reason: str
    source: str
    dropped: int
    documents: int

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.reason} drops {self.dropped:,} of {self.documents:,} documents of {self.source} "
            f"({self.dropped / self.documents:.0%}); look at its examples, and change or leave out the rule if it is "
            "wrong for this source"
        )


def heavy_rules(stage: Mapping[str, Any]) -> Iterator[HeavyRule]:
    """The rules of a stage's summary that drop more than a fifth of a source, the heaviest first."""
    if stage["kind"] != _JUDGING:
        return
    dropped: Mapping[str, Mapping[str, int]] = stage["statistics"].get("dropped_by_source", {})
    documents = {name: entry[0] for name, entry in stage["statistics"]["by_source"].items()}
    for counts in dropped.values():
        for source, count in counts.items():
            documents[source] = documents.get(source, 0) + count
    found = [
        HeavyRule(stage["name"], reason, source, count, documents[source])
        for reason, counts in dropped.items()
        for source, count in counts.items()
        if documents[source] >= _FEWEST_DOCUMENTS and count > _MOST * documents[source]
    ]
    yield from sorted(found, key=lambda one: -one.dropped / one.documents)
