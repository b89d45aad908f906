"""The stage `filter`: which documents break a rule, and how the measured values are spread."""

from collections.abc import Mapping
from typing import Any

from data_tools.engine.document import Document, Drop
from data_tools.filters.config import FilterConfig
from data_tools.filters.histograms import RuleHistograms
from data_tools.filters.suite import FilterSuite
from data_tools.settings.check import checked
from data_tools.settings.problems import Problems


class FilterTransform:
    """Asks the rules about every document whose language is not left out.

    Attributes:
        measured: of all documents asked about.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._suite = FilterSuite(checked(FilterConfig, options["rules"], "rules", Problems()))
        self._skipped = frozenset(options["skip_languages"])
        self.measured = RuleHistograms()

    def __call__(self, batch: list[Document]) -> list[Document | Drop]:
        """Documents that stay, and for the others the first rule they break."""
        asked = [document for document in batch if document.language not in self._skipped]
        found = iter(self._suite.apply([document.text for document in asked], self.measured.add))
        results: list[Document | Drop] = []
        for document in batch:
            drop = next(found) if document.language not in self._skipped else None
            results.append(document if drop is None else Drop(drop.reason, drop.detail))
        return results
