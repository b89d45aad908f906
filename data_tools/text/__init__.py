"""Kernels on batches of texts: words, statistics, normalised form and its hash."""

from data_tools.text.characters import words
from data_tools.text.normalized import NORMALIZATION, normalize, normalized_hashes
from data_tools.text.statistics import COLUMNS, text_statistics

__all__ = ["COLUMNS", "NORMALIZATION", "normalize", "normalized_hashes", "text_statistics", "words"]
