"""Speed and memory of a training step against transformers and against the machine: `make bench-train`.

Contestants run in processes of their own, one after the other, several rounds; each round gives every contestant one
block of steps, so that a slow spell of the machine meets them alike. Ratios are medians over rounds of ratios within a
round. The floor is what no implementation can leave out on this machine with torch's kernels: the matrix products of
forward and backward, attention, and one pass of exp over the logits.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

HIDDEN, LAYERS, FFN, HEADS, SEQUENCE, VOCAB = 512, 8, 1408, 8, 512, 151_936
SPEED_BATCH, MEMORY_BATCH = 2, 8
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
MARK = "<!-- bench-train -->"

# Contestants by name: which builder, in which precision.
CONTESTANTS = {
    "ours fp32": ("ours", "fp32"),
    "transformers fp32": ("transformers", "fp32"),
    "floor fp32": ("floor", "fp32"),
    "ours bf16, fp32 masters": ("ours", "bf16"),
    "transformers bf16 autocast": ("transformers", "autocast"),
    "transformers pure bf16": ("transformers", "bf16"),
    "floor bf16": ("floor", "bf16"),
}

# Ratio of the second's time or memory to the first's, with the bar it must reach.
SPEED_RATIOS = (
    ("ours bf16, fp32 masters", "transformers bf16 autocast", 1.3),
    ("ours bf16, fp32 masters", "transformers pure bf16", 1.1),
    ("ours bf16, fp32 masters", "floor bf16", 0.62),
    ("ours fp32", "transformers fp32", 1.1),
    ("ours fp32", "floor fp32", 0.80),
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """What one contestant measured in one round.

    Attributes:
        wall_seconds: Time of each step.
        cpu_seconds: Processor time of each step over all threads: what a busy machine changes less.
        peak_bytes: Largest resident memory of the process so far.
        start_bytes: Resident memory before the model was built.
    """

    wall_seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int
    start_bytes: int


def build_ours(precision: str, batch: int) -> Callable[[], float]:
    """Our engine, through the plan and the step of a real run."""
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.parallel.groups import build_groups, start_process_group
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.engine import build_engine
    from qwen_megatron.train.step import train_step

    shape = {
        "model.num_layers": LAYERS,
        "model.hidden_size": HIDDEN,
        "model.ffn_hidden_size": FFN,
        "model.num_attention_heads": HEADS,
        "model.vocab_size": VOCAB,
        "model.seq_length": SEQUENCE,
        "training.seq_length": SEQUENCE,
        "training.micro_batch_size": batch,
        "training.global_batch_size": batch,
        "training.precision": precision,
        "training.seed": 1,
        "training.train_iters": 100,
        "optimizer.lr_warmup_iters": 0,
    }
    plan = resolve(load_config(None, [f"{key}={value}" for key, value in shape.items()]), 1)
    machine = get_platform("cpu")
    machine.prepare()
    device = start_process_group(machine, 60)
    engine = build_engine(plan, build_groups(device=device, timeout_seconds=60), machine)
    batches = our_batches(batch)

    def step() -> float:
        return train_step(engine, batches, step=1, learning_rate=1e-4, clip_grad=1.0).loss

    return step


def our_batches(batch: int) -> Iterator[Any]:
    """Endless micro-batches of the same random tokens that transformers gets."""
    from qwen_megatron.data.batch import make_batch
    from qwen_megatron.data.dataset import SampleId

    ids = [SampleId(corpus=0, sample=i, epoch=0) for i in range(batch)]
    while True:
        yield make_batch(list(random_tokens(batch).numpy()), ids, SEQUENCE, VOCAB - 1)


def random_tokens(batch: int) -> Any:
    """[b, s + 1] int64, the same for all."""
    import torch

    return torch.randint(VOCAB, (batch, SEQUENCE + 1), generator=torch.Generator().manual_seed(0))


def build_transformers(precision: str, batch: int) -> Callable[[], float]:
    """Qwen2ForCausalLM as its documentation trains it: SDPA, torch's fused AdamW, clipping."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCAB,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens = random_tokens(batch)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = model(input_ids=inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def build_floor(precision: str, batch: int) -> Callable[[], float]:
    """The unavoidable kernels of one step, on tensors that stay where they are."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = batch * SEQUENCE

    def products(columns: int, rows: int) -> Callable[[], None]:
        """Forward, input gradient and weight gradient of a linear layer."""
        x, w, y = (torch.randn(shape).to(dtype) for shape in ((tokens, columns), (rows, columns), (tokens, rows)))
        out_y, out_x, out_w = torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)

        def run() -> None:
            torch.mm(x, w.t(), out=out_y)
            torch.mm(y, w, out=out_x)
            torch.mm(y.t(), x, out=out_w)

        return run

    shapes = ((HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN))
    layer = [products(*shape) for shape in shapes]
    head = products(HIDDEN, VOCAB)
    heads_shape = (batch, HEADS, SEQUENCE, HIDDEN // HEADS)
    query, key, value = (torch.randn(heads_shape).to(dtype).requires_grad_() for _ in range(3))
    logits = torch.randn(1, VOCAB)
    exponentials = torch.empty_like(logits)

    def step() -> float:
        for _ in range(LAYERS):
            for run in layer:
                run()
            context = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            torch.autograd.grad(context, (query, key, value), context.detach())
        head()
        for _ in range(tokens):
            torch.exp(logits, out=exponentials)
        return 0.0

    return step


BUILDERS = {"ours": build_ours, "transformers": build_transformers, "floor": build_floor}


def contestant(kind: str, precision: str, batch: int, threads: int, pipe: Any) -> None:
    """A process that measures a block of steps whenever it is told how many."""
    import warnings

    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = BUILDERS[kind](precision, batch)
    while (count := pipe.recv()) is not None:
        wall, cpu = [], []
        for _ in range(count):
            before = time.perf_counter(), time.process_time()
            step()
            wall.append(time.perf_counter() - before[0])
            cpu.append(time.process_time() - before[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send(Block(wall_seconds=wall, cpu_seconds=cpu, peak_bytes=peak, start_bytes=start))


class Contestant:
    """A contestant's process."""

    def __init__(self, name: str, batch: int, threads: int):
        kind, precision = CONTESTANTS[name]
        # Set before the process starts: OpenMP reads it when torch is loaded.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=contestant, args=(kind, precision, batch, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, steps: int) -> Block:
        self.pipe.send(steps)
        block: Block = self.pipe.recv()
        return block

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def measure_speed(threads: int, rounds: int, steps: int) -> dict[str, list[Block]]:
    """Blocks of every contestant, by name, in the order of rounds."""
    blocks: dict[str, list[Block]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, several in blocks.items():
            # A new process each time: beside the memory of idle ones, fresh memory for large tensors costs more.
            one = Contestant(name, SPEED_BATCH, threads)
            one.run(1)
            several.append(one.run(steps))
            one.close()
    return blocks


def measure_memory() -> dict[str, Block]:
    """Two steps with one large micro-batch: the second has optimizer state and activations at once."""
    names = ("ours bf16, fp32 masters", "transformers bf16 autocast", "transformers pure bf16", "ours fp32")
    measured = {}
    for name in names:
        one = Contestant(name, MEMORY_BATCH, len(os.sched_getaffinity(0)))
        measured[name] = one.run(2)
        one.close()
    return measured


def seconds(block: Block, clock: str) -> float:
    return min(getattr(block, clock))


def speed_lines(blocks: dict[str, list[Block]], threads: int) -> list[str]:
    """Markdown tables of times and ratios."""
    clock = "cpu_seconds" if threads == 1 else "wall_seconds"
    lines = [
        f"### Speed, {threads} thread{'s' if threads > 1 else ''}",
        "",
        "| | wall s/step | processor s/step |",
        "|---|---|---|",
    ]
    for name, several in blocks.items():
        wall, cpu = (statistics.median(seconds(b, c) for b in several) for c in ("wall_seconds", "cpu_seconds"))
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    lines += [
        "",
        f"| ratio ({clock.split('_')[0]} time) | median | lowest | highest | bar |",
        "|---|---|---|---|---|",
    ]
    for ours, theirs, bar in SPEED_RATIOS:
        ratios = [seconds(b, clock) / seconds(a, clock) for a, b in zip(blocks[ours], blocks[theirs], strict=True)]
        median = statistics.median(ratios)
        lines.append(f"| {theirs} / {ours} | **{median:.2f}** | {min(ratios):.2f} | {max(ratios):.2f} | {bar} |")
    return [*lines, ""]


def memory_lines(measured: dict[str, Block]) -> list[str]:
    """Markdown table of peaks."""
    base = measured["transformers bf16 autocast"].peak_bytes
    lines = [
        f"### Peak resident memory, one micro-batch of {MEMORY_BATCH} x {SEQUENCE}",
        "",
        "| | GB | of transformers autocast |",
        "|---|---|---|",
    ]
    for name, block in measured.items():
        lines.append(f"| {name} | {block.peak_bytes / 1e9:.2f} | **{block.peak_bytes / base:.2f}** |")
    return [*lines, "", "Bar: 0.60 of transformers autocast for ours in bf16. The whole process is counted.", ""]


def machine_lines(busy_before: float) -> list[str]:
    """Where and when, and whether other work ran beside."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "megatron-core"))
    cores = len(os.sched_getaffinity(0))
    state = "otherwise idle" if busy_before < 0.3 else f"BUSY with other work (load {busy_before:.1f} before the start)"
    return [
        f"{datetime.now(UTC):%Y-%m-%d}; {model}, {cores} cores, machine {state}; {versions}.",
        f"hidden {HIDDEN}, {LAYERS} layers, ffn {FFN}, {HEADS} heads, sequence {SEQUENCE}, vocabulary {VOCAB:,},",
        f"{SPEED_BATCH * SEQUENCE} tokens a step, not tied, clipping, AdamW. Contestants take turns; a round counts",
        "the fastest of its steps, a ratio is the median over rounds.",
        "",
    ]


def write_section(lines: list[str]) -> None:
    """Replaces this benchmark's part of docs/benchmarks.md, between its marks."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Benchmarks\n"
    section = "\n".join([MARK, "## Training step (`make bench-train`)", "", *lines]) + MARK + "\n"
    if text.count(MARK) == 2:
        before, _, after = text.split(MARK)
        text = before + section.rstrip("\n") + after
    else:
        text = text.rstrip("\n") + "\n\n" + section
    temporary = RESULTS.with_suffix(".md.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one thread, two rounds of one step, no memory")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of alternating contestants")
    parser.add_argument("--steps", type=int, default=2, help="steps a contestant takes in a round")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--json", type=Path, help="write the raw times here")
    options = parser.parse_args()
    lines = machine_lines(os.getloadavg()[0])
    raw: dict[str, Any] = {}
    rounds, steps = (2, 1) if options.quick else (options.rounds, options.steps)
    for threads in (1,) if options.quick else (1, 2):
        blocks = measure_speed(threads, rounds, steps)
        raw[f"{threads} threads"] = {name: [vars(block) for block in several] for name, several in blocks.items()}
        lines += speed_lines(blocks, threads)
        print("\n".join(lines), flush=True)
    if not options.quick:
        measured = measure_memory()
        raw["memory"] = {name: vars(block) for name, block in measured.items()}
        lines += memory_lines(measured)
        print("\n".join(memory_lines(measured)))
    if options.json is not None:
        options.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    if options.write:
        write_section(lines)


if __name__ == "__main__":
    main()
