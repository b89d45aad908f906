"""Rule filters: Gopher quality and repetition, C4, FineWeb; for English and Chinese."""

from data_tools.filters.config import C4, FilterConfig, FineWeb, GopherQuality, GopherRepetition
from data_tools.filters.drop import Drop
from data_tools.filters.suite import FilterSuite, c4_clean

__all__ = ["C4", "Drop", "FilterConfig", "FilterSuite", "FineWeb", "GopherQuality", "GopherRepetition", "c4_clean"]
