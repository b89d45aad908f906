"""Why a document is dropped."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """A filter's decision against a document."""

    reason: str
    """Name of the rule, `<filter>_<rule>`; the key of all counts."""
    value: float
    """What was measured, in the unit of the rule's threshold."""
