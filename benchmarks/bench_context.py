"""The paper's Table 3 in little: perplexity beyond the trained context, each way of reading it: `make bench-context`.

A model of bytes with two layers is trained on the source of Python's standard library at a context of 128, and read at
up to 16 times that (tests/support/byte_model.py; a shorter run of it is a test).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import psutil
import torch
from results import machine_line, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_tools.io.progress import progress_bar
from qwen_megatron.evaluation.perplexity import measure
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.loading import single_process
from tests.support.byte_model import CONTEXT, source_bytes, trained_model

EXTENSIONS = ("none", "ntk", "dynamic-ntk", "logn", "dynamic-ntk+logn", "dynamic-ntk+logn+window")
LENGTHS = tuple(CONTEXT * times for times in (1, 2, 4, 8, 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=16, help="samples a step")
    parser.add_argument("--tokens", type=int, default=65_536, help="held-out bytes that are read")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(2)
    lines = [machine_line(psutil.cpu_percent(interval=2.0)), ""]
    with single_process("cpu") as groups:
        start = time.perf_counter()
        with progress_bar("training", options.steps, unit="steps") as progress:
            model = trained_model(groups, options.steps, options.rows, 3e-3, lambda step: progress.advance(1))
        seconds = time.perf_counter() - start
        _, held_out = source_bytes()
        cells = measure(Generator(model, groups), held_out[: options.tokens], LENGTHS, EXTENSIONS, None)
    lines += [
        (
            f"Two layers, hidden size 64, {options.steps} steps of {options.rows} x {CONTEXT} bytes ({seconds:.0f} s); "
            f"perplexity of {options.tokens:,} held-out bytes in pieces of each length:"
        ),
        "",
        f"| | {' | '.join(map(str, LENGTHS))} |",
        f"|---|{'---|' * len(LENGTHS)}",
    ]
    for at in range(0, len(cells), len(LENGTHS)):
        row = cells[at : at + len(LENGTHS)]
        lines.append(f"| {row[0].extend} | {' | '.join(f'{cell.perplexity:.2f}' for cell in row)} |")
    print("\n".join(lines))
    if options.write:
        write_section("bench-context", ["## Beyond the trained context (`make bench-context`)", "", *lines])


if __name__ == "__main__":
    main()
