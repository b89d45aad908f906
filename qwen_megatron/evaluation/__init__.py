"""Benchmarks: task files and lm-evaluation-harness on one model, code execution, results beside the paper's."""
