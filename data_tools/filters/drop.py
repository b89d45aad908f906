"""Why a document is dropped."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Drop:
    """A filter's decision against a document."""

    reason: str
    """Name of the rule, `<filter>_<rule>`; the key of all counts."""
    value: float
    """What was measured, in the unit of the rule's threshold."""
    limit: float = dataclasses.field(default=0.0, compare=False)
    """The threshold."""
    is_least: bool = dataclasses.field(default=False, compare=False)
    """Whether what is below the threshold is dropped."""

    @property
    def detail(self) -> str:
        """Value and rule, as `0.72, below 0.8`."""
        return f"{self.value:.4g}, {'below' if self.is_least else 'above'} {self.limit:g}"
