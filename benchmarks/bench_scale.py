"""How costs grow with the number of ranks: simulated in one process, with counted calls and temporary files.

No rank is started. What a rank does is done as often as there are ranks, or by a few of them where all do alike, with
the files and the plans that so many ranks would have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from results import write_section

ROOT = Path(__file__).resolve().parents[1]
RANKS = (8, 64, 512, 1024, 8192)
TENSOR, PIPELINE = 8, 4
# Ranks of which the look-ups are counted; all have as many, give or take one.
SAMPLED = 8


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Files asked about (`stat`) and opened inside, in this process."""
    calls: Counter[str] = Counter()
    stat = os.stat

    def counting(path: Any, **options: Any) -> os.stat_result:
        calls["stat"] += 1
        return stat(path, **options)

    is_on = True
    sys.addaudithook(lambda event, _: calls.update(["open"]) if is_on and event == "open" else None)
    try:
        with mock.patch.object(os, "stat", counting):
            yield calls
    finally:
        is_on = False


def straggler_rows() -> Iterator[str]:
    """Milliseconds of a report."""
    import random

    from qwen_megatron.train.hooks.straggler import stragglers

    drawn = random.Random(1)
    for ranks in RANKS:
        seconds = [[drawn.gauss(1.0, 0.01), 2.5, float(rank * PIPELINE // ranks)] for rank in range(ranks)]
        taken = min(timed(partial(stragglers, seconds)) for _ in range(5))
        yield f"| {ranks:,} | {taken * 1e3:.2f} | {24 * ranks / 1e3:,.1f} |"


def timed(work: Callable[[], Any]) -> float:
    """Processor seconds: the machine may be busy, and nothing here waits."""
    started = time.process_time()
    work()
    return time.process_time() - started


def look_up_rows(parent: Path) -> Iterator[str]:
    """Look-ups of a checkpoint of as many ranks as load it, before any byte is hashed."""
    import hashlib

    from qwen_megatron.checkpoint.choice import READ_BY_ALL, View, manifest_hash
    from qwen_megatron.checkpoint.manifest import FileEntry, read_manifest, write_manifest

    for ranks in RANKS:
        folder = parent / f"look-ups-{ranks}"
        folder.mkdir()
        names = [*READ_BY_ALL, *(f"__{rank}_0.distcp" for rank in range(ranks))]
        for name in names:
            (folder / name).write_bytes(b"x")
        write_manifest(folder, dict.fromkeys(names, FileEntry(1, hashlib.sha256(b"x").hexdigest())))
        manifest = manifest_hash(folder)
        with counted_calls() as whole:
            read_manifest(folder)
        most = Counter[str]()
        for rank in range(0, ranks, max(1, ranks // SAMPLED)):
            with counted_calls() as calls:
                assert View(folder, manifest, rank, ranks).look() == ("", "")
            most |= calls
        before = f"{2 * whole['stat']:,} | {2 * whole['stat'] * ranks:,}"
        yield f"| {ranks:,} | {most['stat']} | {most['open']} | {most['stat'] * ranks:,} | {before} |"


# Which axis of a layer's tensor is split over tensor-parallel ranks; norms are whole on each.
SPLIT_AXIS = {
    "embedding.word_embeddings.weight": 0,
    "decoder.layers.self_attention.linear_qkv.weight": 0,
    "decoder.layers.self_attention.linear_qkv.bias": 0,
    "decoder.layers.self_attention.linear_proj.weight": 1,
    "decoder.layers.mlp.linear_fc1.weight": 0,
    "decoder.layers.mlp.linear_fc2.weight": 1,
    "output_layer.weight": 0,
}
Box = tuple[slice, ...]


def boxes(entry: Any, model: Any, tensor_rank: int) -> list[Box]:
    """What a tensor-parallel rank holds of a layer's tensor; gate and up are split each on its own."""
    shape = entry.shape(model)
    axis = SPLIT_AXIS.get(entry.key)
    if axis is None:
        return [tuple(slice(0, size) for size in shape)]
    branches = 2 if entry.key.endswith("linear_fc1.weight") else 1
    # The vocabulary is padded for the layout; the last rank holds less of it.
    size = math.ceil(shape[axis] / branches / TENSOR)
    starts = [branch * shape[axis] // branches + tensor_rank * size for branch in range(branches)]
    return [
        tuple(
            slice(start, min(start + size, whole)) if number == axis else slice(0, whole)
            for number, whole in enumerate(shape)
        )
        for start in starts
    ]


def parts_of_stage(model: Any, stage: int) -> list[Any]:
    """What a pipeline stage holds: its layers, and the embedding or the output at the ends."""
    from qwen_megatron.convert.name_map import parts

    layers = model.num_layers // PIPELINE
    kept = []
    for part in parts(model):
        if part.layer is not None:
            place = part.layer // layers
        else:
            place = 0 if part.entry.key.startswith("embedding") else PIPELINE - 1
        if place == stage:
            kept.append(part)
    return kept


def scaled_down() -> Any:
    """A model with the proportions of 72B and a hundredth of its width."""
    from tests.convert.random_weights import TINY

    return dataclasses.replace(
        TINY,
        num_layers=8,
        hidden_size=128,
        ffn_hidden_size=384,
        num_attention_heads=16,
        num_query_groups=8,
        kv_channels=8,
        vocab_size=1999,
    )


def bytes_read(parent: Path) -> tuple[int, int, int]:
    """(of the model, read by the first replica in slices, by one replica in whole tensors), in bytes; counted."""
    import torch

    from qwen_megatron.convert.from_hf import write_weights
    from qwen_megatron.convert.hf_folder import HfFolder
    from qwen_megatron.convert.name_map import Format
    from qwen_megatron.convert.to_hf import to_hf
    from tests.convert.random_weights import RandomWeights

    model = scaled_down()
    write_weights(RandomWeights(model, torch.bfloat16), parent / "checkpoint")
    to_hf(parent / "checkpoint", parent / "hf", hf_format=Format.QWEN2)
    folder = HfFolder(parent / "hf")
    sliced = whole = 0
    original = folder.read_tensor
    read = Counter[str]()

    def counting(*arguments: Any) -> torch.Tensor:
        tensor = original(*arguments)
        read["bytes"] += tensor.nbytes
        return tensor

    folder.read_tensor = counting  # type: ignore[method-assign, assignment]
    for stage in range(PIPELINE):
        for tensor_rank in range(TENSOR):
            for part in parts_of_stage(model, stage):
                read.clear()
                for box in boxes(part.entry, model, tensor_rank):
                    folder.read_box(part, box)
                sliced += read["bytes"]
                read.clear()
                folder.read(part)
                whole += read["bytes"]
    return sum(2 * math.prod(tensor.shape) for tensor in folder.tensors.values()), sliced, whole


def bytes_by_arithmetic(model: Any) -> tuple[int, int, int]:
    """As `bytes_read`, from shapes alone."""
    total = sliced = whole = 0
    for stage in range(PIPELINE):
        for part in parts_of_stage(model, stage):
            size = 2 * math.prod(part.entry.shape(model))
            total += size
            whole += TENSOR * size
            for tensor_rank in range(TENSOR):
                for box in boxes(part.entry, model, tensor_rank):
                    sliced += 2 * math.prod(side.stop - side.start for side in box)
    return total, sliced, whole


def model_72b() -> Any:
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve

    return resolve(load_config(None, ["model.preset=qwen-72b"]), None).model


def reading_rows(parent: Path) -> Iterator[str]:
    """Bytes from the disk over all ranks at TP8 x PP4 and more and more replicas."""
    counted = bytes_read(parent)
    assert counted == bytes_by_arithmetic(scaled_down())
    large = bytes_by_arithmetic(model_72b())
    for replicas in (1, 4, 32, 256):
        cells = []
        for unit, digits, (_, sliced, whole) in ((1e6, 2, counted), (1e12, 3, large)):
            cells += [f"{sliced / unit:.{digits}f}", f"{whole * replicas / unit:,.{digits}f}"]
        yield f"| {TENSOR * PIPELINE * replicas:,} | {' | '.join(cells)} |"


def rank_plan(model: Any, rank: int, replicas: int) -> Any:
    """What a rank of TP8 x PP4 x `replicas` writes: its part of weights, masters and moments as rectangles."""
    from qwen_megatron.checkpoint.optimizer_shards import rectangles
    from qwen_megatron.checkpoint.plan_exchange import Item, RankPlan

    tensor_rank, replica, stage = rank % TENSOR, rank // TENSOR % replicas, rank // (TENSOR * replicas)
    held = [
        (part, box)
        for part in parts_of_stage(model, stage)
        for box in boxes(part.entry, model, tensor_rank)
        # Norms are alike on all tensor-parallel ranks; the first writes them.
        if part.entry.key in SPLIT_AXIS or tensor_rank == 0
    ]
    sizes = [math.prod(side.stop - side.start for side in box) for _, box in held]
    share = math.ceil(sum(sizes) / replicas)
    low, high = replica * share, (replica + 1) * share
    items, begin, place = [], 0, 0
    for (part, box), size in zip(held, sizes, strict=True):
        shape = tuple(side.stop - side.start for side in box)
        for offset, sides in rectangles(shape, max(low - begin, 0), min(high - begin, size)):
            corner = tuple(side.start + at for side, at in zip(box, offset, strict=True))
            layer = () if part.layer is None else (part.layer,)
            one = () if part.layer is None else (1,)
            layers = () if part.layer is None else (model.num_layers,)
            for prefix in ("", *(f"optimizer.state.{name}." for name in ("param", "exp_avg", "exp_avg_sq"))):
                length = math.prod(sides) * (4 if prefix else 2) + 1200
                items.append(
                    Item(
                        key=f"model.{prefix}{part.entry.key}",
                        shape=(*layers, *part.entry.shape(model)),
                        dtype="float32" if prefix else "bfloat16",
                        offsets=(*layer, *corner),
                        sizes=(*one, *sides),
                        start=place,
                        length=length,
                    )
                )
                place += length
        begin += size
    # torch plans tensor by tensor.
    return RankPlan(f"__{rank}_0.distcp", tuple(sorted(items, key=lambda item: item.key)))


def planning_rows(most_ranks: int) -> Iterator[str]:
    """What the first save and later ones do in the foreground beside taking their own bytes."""
    from qwen_megatron.checkpoint.plan_exchange import described, parse
    from qwen_megatron.checkpoint.write_tensors import metadata_of

    model = model_72b()
    for ranks in (32, 128, 512, 1024, 8192):
        if ranks > most_ranks:
            continue
        replicas = ranks // (TENSOR * PIPELINE)
        plans = [rank_plan(model, rank, replicas) for rank in range(ranks)]
        texts = [json.dumps(described(plan)) for plan in plans]
        longest = max(map(len, texts))
        again = parse(json.loads(texts[0]))
        started = time.process_time()
        assert plans[0] == again
        same = time.process_time() - started
        started = time.process_time()
        metadata = metadata_of([parse(json.loads(text)) for text in texts])
        planned = time.process_time() - started
        yield (
            f"| {ranks:,} | {max(len(plan.items) for plan in plans):,} | {longest * ranks / 1e6:,.1f} | "
            f"{planned:,.2f} | {len(metadata) / 1e6:,.1f} | 24 | {same * 1e3:.2f} |"
        )


def section(most_ranks: int) -> list[str]:
    """The benchmark's part of docs/benchmarks.md."""
    import torch

    load = os.getloadavg()[0]
    head = (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, load average {load:.1f} at the "
        f"start, torch {torch.__version__}."
    )
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        parent = Path(name)
        return [
            "## Growth with ranks (`benchmarks/bench_scale.py`)",
            "",
            head,
            "Simulated in one process: no network, no file server. Calls and bytes are counted; seconds are those of",
            "the processor, on rank 0.",
            "",
            "| ranks | straggler report, ms | gathered by each rank, kB |",
            "|---|---|---|",
            *straggler_rows(),
            "",
            f"Looking at a checkpoint of as many ranks before it is hashed; the most of {SAMPLED} ranks.",
            "",
            "| ranks | stat a rank | open a rank | stat in all | before: stat a rank | before: in all |",
            "|---|---|---|---|---|---|",
            *look_up_rows(parent),
            "",
            f"`init_from` of a Hugging Face folder at TP{TENSOR} x PP{PIPELINE}: bytes read over all ranks, of a small",
            "model as counted, of 72B by the same arithmetic. Before, every rank read its tensors whole.",
            "",
            "| ranks | counted, MB | before, MB | 72B, TB | before, TB |",
            "|---|---|---|---|---|",
            *reading_rows(parent),
            "",
            f"Planning a save of 72B at TP{TENSOR} x PP{PIPELINE}. A first save gathers what each rank writes; a later",
            "one compares on each rank and exchanges three numbers. Before, every save was a first one.",
            "",
            (
                "| ranks | parts a rank | first: gathered, MB | first: rank 0, s | metadata, MB | later: bytes a rank "
                "| later: compare, ms |"
            ),
            "|---|---|---|---|---|---|---|",
            *planning_rows(most_ranks),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--most-ranks", type=int, default=8192, help="of the planning, which takes minutes at 8192")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    lines = section(options.most_ranks)
    print("\n".join(lines))
    if options.write:
        write_section("bench-scale", lines)


if __name__ == "__main__":
    main()
