"""What `qwen-megatron plan` says against what a dry run counts, and against steps that were measured.

    python benchmarks/bench_plan.py            # prints the tables
    python benchmarks/bench_plan.py --write    # and puts them into docs/benchmarks.md
    python benchmarks/bench_plan.py --small-runs --write   # real runs of two processes on this machine, to be idle

But for the small runs, which measure the machine first, nothing here is a time of this machine but that of the search.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from results import write_section

from qwen_megatron.config.arithmetic.memory import rank_memory, stage_memory
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.data.protocol import BatchShape
from qwen_megatron.jobs.kinds.table import PRETRAIN
from qwen_megatron.planning import published
from qwen_megatron.planning.kernels import kernels_on
from qwen_megatron.planning.machine import load_machine
from qwen_megatron.planning.place import place_of
from qwen_megatron.planning.plan import LEFT_OUT
from qwen_megatron.planning.search import search
from qwen_megatron.planning.step_time import step_time
from qwen_megatron.planning.traffic import step_traffic
from qwen_megatron.planning.work import step_flops

GIB = 2.0**30
SIZES = ("0.5b", "1.8b", "7b", "14b", "72b")
TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"
CP, VPP = "parallel.context_parallel_size", "parallel.virtual_pipeline_model_parallel_size"
SP, AGAIN = "parallel.sequence_parallel=true", "parallel.recompute_granularity"
# Of every size: depth only repeats a layer, and what passes on top of the layers weighs more with fewer of them.
LAYERS = 8
OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
# Name, processes, rank, settings.
LAYOUTS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("one", 1, 0, ()),
    ("DP8, overlapped", 8, 3, OVERLAP),
    ("TP2", 2, 1, (f"{TP}=2",)),
    ("TP4 SP DP2", 8, 2, (f"{TP}=4", SP)),
    ("TP8 SP, all again", 8, 7, (f"{TP}=8", SP, f"{AGAIN}=full")),
    ("CP2, attention again", 2, 1, (f"{CP}=2", f"{AGAIN}=selective")),
    ("PP4, first", 4, 0, (f"{PP}=4",)),
    ("PP4 DP2, last", 8, 7, (f"{PP}=4",)),
    ("TP2 SP PP2 VPP2, first", 4, 1, (f"{TP}=2", SP, f"{PP}=2", f"{VPP}=2")),
    ("TP8 SP CP2 PP4 of 1,024, third", 1024, 700, (f"{TP}=8", SP, f"{CP}=2", f"{PP}=4", *OVERLAP)),
)

INTRODUCTION = (
    "`qwen-megatron plan`: arithmetic against dry runs of the program (torch's kernels, the released widths and "
    "vocabularies with 8 layers, sequences of 2048, as many micro-batches as stages), and against measured steps. Made "
    "by `python benchmarks/bench_plan.py --write`."
)
ON_H200 = (
    "Our steps on one H200 (docs/gpu.md), of an experimental state of the engine whose blocks of the loss and fp32 "
    "copy of a gradient are counted as they were:"
)
ON_H100 = (
    "Megatron-LM's published rows on H100s, TFLOP/s a GPU. Hardware constants are those above but for the memory's "
    "bandwidth; what a launch leaves idle is fitted on two rows ({theirs:.0f} us; ours: {ours:.0f} us). Assumed, "
    "because the table does not say: micro-batches of 2, 1,152 sequences a step (with 768 the 70B row is 11 % low), "
    "layers x hidden as given here, sequence parallelism, overlapped data parallelism."
)


ON_TWO = (
    "Real steps of two processes with a thread each, after `plan --calibrate` on the same machine. Memory: the peak of "
    "a process whose C library gives freed blocks back at once, against the arithmetic and what the calibration found "
    "a process to hold besides; the last column is the peak with what the library keeps of freed memory."
)


def config_of(size: str, processes: int, settings: Sequence[str]) -> ResolvedConfig:
    """A released size on a layout, with as many micro-batches as stages."""
    config = resolve(
        load_config(
            None,
            [
                f"model.preset=qwen-{size}",
                f"model.num_layers={LAYERS}",
                "parallel.platform=cpu",
                f"parallel.world_size={processes}",
                "training.seq_length=2048",
                *settings,
            ],
        )
    )
    return dataclasses.replace(config, num_microbatches=config.parallel.pipeline_model_parallel_size)


def dry_rows(sizes: Sequence[str]) -> Iterator[str]:
    """Rows of the table of dry runs."""
    # Imports torch, which the rest does not need.
    from qwen_megatron.planning.dry_run import dry_run

    for size in sizes:
        for name, processes, rank, settings in LAYOUTS:
            config = config_of(size, processes, settings)
            done = dry_run(config, rank)
            planned = stage_memory(config, place_of(config, rank).stage)
            flops, traffic = step_flops(config, rank) == done.flops, step_traffic(config, rank) == done.sent_bytes
            row = (
                f"| {size} | {name} | {planned.total / GIB:.2f} | {done.peak_bytes / GIB:.2f} | "
                f"{planned.total / done.peak_bytes - 1:+.2%} | {done.flops / 1e12:,.2f}, {equal(flops)} | "
                f"{sum(done.sent_bytes.values()) / 2**20:,.0f}, {equal(traffic)} |"
            )
            print(row, flush=True)
            yield row


def equal(same: bool) -> str:
    """In a table."""
    return "equal" if same else "DIFFERENT"


def measured_rows() -> Iterator[str]:
    """Our steps on one H200."""
    machine = load_machine("h200-141gb")
    for row in published.H200_ROWS:
        config = row.config
        seconds = step_time(config, machine, published.EXPERIMENT).total
        (memory,) = rank_memory(config, kernels_on(config, machine))
        gib = (memory.total + published.extra_bytes(config)) / GIB
        yield (
            f"| {row.name} | {row.seconds:.3f} | {seconds:.3f} | {seconds / row.seconds - 1:+.1%} | {row.gib:.1f} | "
            f"{gib:.1f} | {gib / row.gib - 1:+.1%} |"
        )


def published_rows() -> Iterator[str]:
    """Megatron-LM's."""
    machine = load_machine("h100-80gb")
    engine = published.fitted(machine)
    for row in published.ROWS:
        found = published.tflops_of(row, machine, engine)
        use = "fitted" if row.name in published.FITTED_ON else "predicted"
        yield (
            f"| {row.name} | {row.gpus} | TP{row.tensor} x PP{row.pipeline} | {row.layers} x {row.hidden} | "
            f"{row.tflops:.0f} | {found:.0f} | {found / row.tflops - 1:+.1%} | {use} |"
        )


def search_line() -> str:
    """How long a search takes."""
    start = time.process_time()
    found = search(load_config(["recipe:qwen-72b"]), 1024, load_machine("h100-80gb"), PRETRAIN)
    seconds = time.process_time() - start
    tried = len(found.layouts) + found.too_large + found.refused
    return f"72B on 1,024 GPUs: {tried:,} layouts in {seconds:.1f} s of processor time."


# Layouts of two processes.
TWO = {"DP2": (), "TP2 SP": (f"{TP}=2", SP), "PP2": (f"{PP}=2",)}
SMALL = (
    "model.preset=tiny",
    "model.num_layers=4",
    "model.hidden_size=512",
    "model.ffn_hidden_size=1408",
    "model.num_attention_heads=8",
    "model.vocab_size=8000",
    "model.seq_length=512",
    "parallel.platform=cpu",
    "training.precision=fp32",
    "training.seq_length=512",
    "training.micro_batch_size=2",
    "training.global_batch_size=16",
)


def small_config(settings: Sequence[str]) -> ResolvedConfig:
    """A model that two processes train in a second a step."""
    return resolve(load_config(None, [*SMALL, "parallel.world_size=2", *settings]))


# glibc's name for: blocks above so many bytes go back to the system when they are freed.
M_MMAP_THRESHOLD, KEPT_BLOCK = -3, 1 << 17


def small_run(settings: Sequence[str], steps: int, keep_freed: bool) -> tuple[float, int]:
    """One rank's median seconds of a step, and the most memory it held; runs in a process of the pool.

    Args:
        settings: Of the layout.
        steps: How many.
        keep_freed: The C library keeps freed blocks for the next one, as usual; else the memory held is what is used.
    """
    import ctypes

    import torch

    from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.trainable import build_trainable
    from tests.support.trainables import TinyTrainable, random_batches, take_step

    if not keep_freed:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
    torch.set_num_threads(1)
    config, platform = small_config(settings), get_platform("cpu")
    platform.prepare()
    device = start_process_group(platform, 600.0)
    try:
        groups = build_groups(
            tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
            pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
            device=device,
            timeout_seconds=600.0,
        )
        trainable = TinyTrainable(
            **vars(build_trainable(config, groups, platform)),
            shape=BatchShape(micro_batch_size=config.training.micro_batch_size, seq_length=config.training.seq_length),
            num_microbatches=config.num_microbatches,
            mask_documents=False,
        )
        batches, times = random_batches(trainable, config.model.vocab_size), []
        for _ in range(steps):
            start = time.perf_counter()
            take_step(trainable, batches)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:]), platform.peak_memory_bytes()
    finally:
        destroy_groups()


def small_section() -> list[str]:
    """Real runs of two processes beside what is planned for this machine, measured before."""
    import torch

    from qwen_megatron.planning.calibration import calibrate
    from qwen_megatron.platforms import get_platform

    torch.set_num_threads(1)
    machine = calibrate(get_platform("cpu"), load_machine("h100-80gb"))
    rows = []
    for name, settings in TWO.items():
        timed, counted = two_processes(settings, 6, keep_freed=True), two_processes(settings, 2, keep_freed=False)
        config = small_config(settings)
        seconds, planned = max(one for one, _ in timed), step_time(config, machine).total
        memory = max(stage.total for stage in rank_memory(config)) + machine.reserved_bytes
        used, held = (max(peak for _, peak in found) for found in (counted, timed))
        rows.append(
            f"| {name} | {seconds:.3f} | {planned:.3f} | {planned / seconds - 1:+.1%} | {used / GIB:.3f} | "
            f"{memory / GIB:.3f} | {memory / used - 1:+.1%} | {held / GIB:.2f} |"
        )
    return [
        "### Small runs",
        "",
        ON_TWO,
        "",
        "| layout | s/step | arithmetic | | GiB used | arithmetic | | GiB held |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def two_processes(settings: Sequence[str], steps: int, *, keep_freed: bool) -> list[tuple[float, int]]:
    """`small_run` on two ranks of their own: the most memory of a process is of all it ever did."""
    from tests.support.ranks import RankPool

    pool = RankPool()
    # Processes as a launcher starts them: a forked one does not count the libraries' pages that its parent has read.
    pool.context = multiprocessing.get_context("spawn")
    try:
        return pool.run(2, small_run, settings=settings, steps=steps, keep_freed=keep_freed)
    finally:
        pool.close()


def section(sizes: Sequence[str]) -> list[str]:
    """The section of docs/benchmarks.md."""
    launch_us = published.fitted(load_machine("h100-80gb")).launch_us
    return [
        "## Planning",
        "",
        INTRODUCTION,
        "",
        search_line(),
        "",
        "| size | layout | GiB, arithmetic | GiB, dry run | | 10^12 operations | MiB sent |",
        "|---|---|---|---|---|---|---|",
        *dry_rows(sizes),
        "",
        ON_H200,
        "",
        "| | s/step | arithmetic | | GiB | arithmetic | |",
        "|---|---|---|---|---|---|---|",
        *measured_rows(),
        "",
        ON_H100.format(theirs=launch_us, ours=published.OURS.launch_us),
        "",
        "| model | GPUs | layout | layers x hidden | published | arithmetic | | |",
        "|---|---|---|---|---|---|---|---|",
        *published_rows(),
        "",
        "Not counted: " + "; ".join(LEFT_OUT) + ".",
    ]


def main() -> None:
    """Prints the tables, and writes them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the section into docs/benchmarks.md")
    parser.add_argument("--sizes", nargs="*", default=SIZES, help="released sizes to run")
    parser.add_argument(
        "--small-runs", action="store_true", help="run two processes instead; the machine should be idle"
    )
    args = parser.parse_args()
    lines = small_section() if args.small_runs else section(args.sizes)
    print("\n".join(lines))
    if args.write:
        write_section("small runs" if args.small_runs else "planning", lines)


if __name__ == "__main__":
    main()
