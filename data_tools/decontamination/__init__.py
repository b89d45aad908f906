"""Texts that hold items of benchmarks: found, reported, removed whole or in part."""

from data_tools.decontamination.benchmark_index import BenchmarkIndex, BenchmarkItem, DecontaminationConfig
from data_tools.decontamination.matches import Match, remove_spans, report_line

__all__ = ["BenchmarkIndex", "BenchmarkItem", "DecontaminationConfig", "Match", "remove_spans", "report_line"]
