"""Generation on the CPU against transformers: `make bench-infer`.

Random models of hidden size 1024 x 24 layers with Qwen's vocabulary (463,987,712 parameters), both in one process.
Contestants take turns, several rounds; a ratio is the median over rounds of ratios within a round. Decoding is greedy,
after a prompt of 32 tokens; transformers generates with its cache, SDPA attention and as many threads. Both have the
huge pages that our commands ask for, and keep memory that is freed. The floor of decoding is to read each weight once,
in turn with them: its sum.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import torch
from results import machine_line, write_section
from transformers import Qwen2Config, Qwen2ForCausalLM

from data_tools.allocator import keep_freed_blocks
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.inference.completion import Request
from qwen_megatron.inference.generator import Generator
from qwen_megatron.inference.loading import inference_groups
from qwen_megatron.inference.running_batch import RunningBatch
from qwen_megatron.inference.sampling import Sampling
from qwen_megatron.jobs.launcher import KEPT_BYTES
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.parallel.groups import Groups

PROMPT = 32
PREFILL = 2048
# (work, bar): transformers' time divided by ours must reach the bar.
WORKS = {"decode, batch 1": 1.2, "decode, batch 8": 1.2, f"prefill {PREFILL}": 1.0}
# Of each round: ours, transformers', the floor.
Times = dict[str, list[tuple[float, ...]]]
Contestant = Callable[[str, int], float]


def contestants(precision: str, groups: Groups) -> tuple[Contestant, Contestant, Contestant]:
    """Functions from a work and a number of tokens to seconds: a token of decoding, or the whole prefill."""
    config = PRESETS["qwen-0.5b"]
    built = build_model(dataclasses.replace(config, implementation="torch"), groups, precision=precision, seed=1)
    generator = Generator(unwrapped(built).eval(), groups)
    peer = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_query_groups,
            intermediate_size=config.ffn_hidden_size,
            vocab_size=config.vocab_size,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.seq_length,
        )
    ).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    peer.eval()

    def ours(work: str, tokens: int) -> float:
        rows, length = shape(work)
        batch = RunningBatch(generator.staged, generator.num_tokens, rows)
        for number in range(rows):
            prompt = tuple(range(100 + number, 100 + number + length))
            sampling = Sampling(max_new_tokens=tokens + 1, stop_token_ids=())
            batch.add(Request(number=number, prompt=prompt, sampling=sampling))
        start = time.perf_counter()
        batch.step()
        prefilled = time.perf_counter()
        if work.startswith("prefill"):
            return prefilled - start
        for _ in range(tokens):
            batch.step()
        return (time.perf_counter() - prefilled) / tokens

    def theirs(work: str, tokens: int) -> float:
        rows, length = shape(work)
        ids = torch.stack([torch.arange(100 + number, 100 + number + length) for number in range(rows)])

        def seconds(count: int) -> float:
            start = time.perf_counter()
            peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            return time.perf_counter() - start

        return seconds(1) if work.startswith("prefill") else (seconds(tokens + 1) - seconds(1)) / tokens

    def floor(_work: str, _tokens: int) -> float:
        start = time.perf_counter()
        for parameter in generator.staged.model.parameters():
            # Whatever their kind, read as fp32: half as many for bf16.
            parameter.detach().flatten().view(torch.float32).sum()
        return time.perf_counter() - start

    return ours, theirs, floor


def shape(work: str) -> tuple[int, int]:
    """Rows and tokens of their prompts."""
    return (1, PREFILL) if work.startswith("prefill") else (int(work.rpartition(" ")[2]), PROMPT)


def measure(precision: str, threads: int, rounds: int, tokens: int, works: list[str]) -> Times:
    """Seconds of both, by work and round."""

    torch.set_num_threads(threads)
    keep_freed_blocks(KEPT_BYTES)
    times: Times = {work: [] for work in works}
    with inference_groups() as groups:
        each = contestants(precision, groups)
        for work in works:
            [contestant(work, 2) for contestant in each]
        for _ in range(rounds):
            for work, found in times.items():
                found.append(tuple(contestant(work, tokens) for contestant in each))
    return times


def rows_of(times: Times, precision: str, threads: int) -> list[str]:
    """Rows of the table."""
    lines = []
    for work, found in times.items():
        mine, other, floor = (statistics.median(column) for column in zip(*found, strict=True))
        ratios = [b / a for a, b, _ in found]
        least = f"{floor * 1000:.0f}" if work.startswith("decode") else ""
        lines.append(
            f"| {work} | {precision} | {threads} | {mine * 1000:.0f} | {other * 1000:.0f} | {least} | "
            f"**{statistics.median(ratios):.2f}** | {min(ratios):.2f} | {max(ratios):.2f} | {WORKS[work]} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of alternating contestants")
    parser.add_argument("--tokens", type=int, default=16, help="tokens a contestant decodes in a round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--rows-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows_only:
        (precision,), (threads,) = options.precision, options.threads
        times = measure(precision, threads, options.rounds, options.tokens, options.works)
        print("\n".join(rows_of(times, precision, threads)))
        return
    # Below AVX512 torch multiplies bf16 one number at a time: a prefill takes minutes, of either contestant.
    multiplies_bf16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    lines = [
        f"{machine_line(psutil.cpu_percent(interval=2.0))} {torch.backends.cpu.get_cpu_capability()}.",
        "",
        "| work | precision | threads | ours, ms | transformers, ms | floor, ms | ratio | lowest | highest | bar |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for threads in options.threads:
        for precision in options.precision:
            works = options.works
            if precision == "bf16" and not multiplies_bf16:
                works = [work for work in works if work.startswith("decode")]
            if not works:
                continue
            command = [sys.executable, __file__, "--rows-only", "--precision", precision, "--threads", str(threads)]
            command += ["--rounds", str(options.rounds), "--tokens", str(options.tokens), "--works", *works]
            environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}
            found = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            ).stdout.splitlines()
            rows = [line for line in found if line.startswith("|")]
            print("\n".join(rows), flush=True)
            lines += rows
    lines += [
        "",
        "Decoding: milliseconds a token of all rows; floor: all weights read once. Prefill: until the first token.",
    ]
    if not multiplies_bf16:
        lines.append("Prefill in bf16 is left out on a processor without AVX512: torch takes minutes for it.")
    if options.write:
        write_section("bench-infer", ["## Generation (`make bench-infer`)", "", *lines])


if __name__ == "__main__":
    main()
