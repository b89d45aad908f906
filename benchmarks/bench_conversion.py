"""Conversion of random models: time against copying the same bytes with checksums, peak memory, the check by layers.

Each step is a process of its own, which says what it took. Copying takes turns with converting, because other work on
the machine slows both. Files are dropped from the page cache before they are read, where the system lets us.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from results import machine_line, write_section

ROOT = Path(__file__).resolve().parents[1]
PIECE_BYTES = 8 << 20
SAMPLE_SECONDS = 0.01
# Name -> preset, format; of qwen3 with its norms, groups and head size.
MODELS = {
    "0.5B qwen1": ("qwen-0.5b", "qwen1"),
    "0.5B qwen2": ("qwen-0.5b", "qwen2"),
    "0.5B qwen3": ("qwen-0.5b", "qwen3"),
    "1.8B qwen1": ("qwen-1.8b", "qwen1"),
    "7B qwen2": ("qwen-7b", "qwen2"),
}
STEPS = ("copy", "from-hf", "to-hf", "verify")


def model_of(name: str) -> Any:
    """The architecture of a model of `MODELS`."""
    from qwen_megatron.config.presets import PRESETS

    preset, hf_format = MODELS[name]
    changes: dict[str, Any] = {"use_dynamic_ntk": False, "use_logn_attn": False} if hf_format != "qwen1" else {}
    if hf_format == "qwen3":
        changes |= {"qk_layernorm": True, "add_qkv_bias": False, "num_query_groups": 8, "kv_channels": 128}
    return dataclasses.replace(PRESETS[preset], **changes)


class Noise:
    """Random weights that cost no time to make: windows of one block of noise, in bf16."""

    def __init__(self, model: Any):
        import torch

        self.model = model
        self.block = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()

    def dtype(self, entry: Any) -> Any:
        return self.block.dtype

    def read(self, part: Any, rows: slice | None = None) -> Any:
        import torch

        shape = part.entry.shape(self.model)
        size = torch.Size(shape).numel()
        start = int.from_bytes(hashlib.sha256(f"{part.entry.key} {part.layer}".encode()).digest()[:3], "big")
        values = self.block.roll(-start % len(self.block))
        values = values.repeat(-(-size // len(values)))[:size].view(shape)
        values = values + 1 if "norm" in part.entry.key else values
        return values if rows is None else values[rows]


def make(name: str, folder: Path) -> None:
    """Writes a Hugging Face folder of random weights."""
    import torch

    from data_tools.io.progress import SilentProgress
    from qwen_megatron.convert.hf_config import write_config
    from qwen_megatron.convert.name_map import Format
    from qwen_megatron.convert.shards import plan_shards, write_index, write_shards
    from qwen_megatron.convert.to_hf import converted_tensors, planned_tensors, write_json

    hf_format, source = Format(MODELS[name][1]), Noise(model_of(name))
    planned = planned_tensors(source, hf_format, None)
    shards = plan_shards(planned, 2 * 10**9)
    folder.mkdir()
    write_shards(folder, shards, planned, converted_tensors(source, hf_format, planned, SilentProgress()))
    write_index(folder, shards, planned)
    config = write_config(source.model, hf_format, torch.bfloat16, has_qwen_tokens=False)
    write_json(folder / "config.json", config)


def copy_folder(source: Path, out: Path) -> None:
    """What the conversion is measured against: read, sha256 and written in one pass, then synced."""
    out.mkdir()
    for path in sorted(source.iterdir()):
        digest = hashlib.sha256()
        with path.open("rb") as reader, (out / path.name).open("wb") as writer:
            while piece := reader.read(PIECE_BYTES):
                digest.update(piece)
                writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())


@contextlib.contextmanager
def memory_watched() -> Iterator[dict[str, int]]:
    """Peak of this process's own memory, pages of files that it maps left out."""
    peak = {"peak_bytes": 0}
    ends = threading.Event()

    def watch() -> None:
        while not ends.wait(SAMPLE_SECONDS):
            with open("/proc/self/status", encoding="ascii") as stream:
                lines = dict(line.split(":", 1) for line in stream)
            peak["peak_bytes"] = max(peak["peak_bytes"], int(lines["RssAnon"].split()[0]) << 10)
            peak["resident_bytes"] = int(lines["VmHWM"].split()[0]) << 10

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    ends.set()
    thread.join()


def drop_from_cache(folder: Path) -> None:
    """Lets the next reader read from the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run_step(step: str, name: str, source: Path, out: Path) -> None:
    """One step in this process; prints its seconds and bytes."""
    from qwen_megatron.libraries import silence_libraries

    silence_libraries()
    found: dict[str, Any] = {}
    actions: dict[str, Callable[[], Any]] = {"copy": lambda: copy_folder(source, out)}
    if step == "make":
        actions["make"] = lambda: make(name, out)
    elif step == "from-hf":
        from qwen_megatron.convert.from_hf import from_hf

        actions[step] = lambda: from_hf(source, out)
    elif step == "to-hf":
        from qwen_megatron.convert.name_map import Format
        from qwen_megatron.convert.to_hf import to_hf

        actions[step] = lambda: to_hf(source, out, hf_format=Format(MODELS[name][1]), max_shard_bytes=2 * 10**9)
    elif step == "verify":
        from qwen_megatron.convert.verify import verify
        from qwen_megatron.inference.loading import single_process

        def check() -> None:
            with single_process("cpu") as groups:
                report = verify(source, out, groups, by_layers=True)
            assert report.is_good, report
            found.update(max_difference=report.max_difference, num_tensors=report.num_tensors)

        actions["verify"] = check
    if step != "make":
        drop_from_cache(source)
    with memory_watched() as peak:
        started = time.perf_counter()
        actions[step]()
        found["seconds"] = time.perf_counter() - started
    print(json.dumps(found | peak))


def in_process(step: str, name: str, source: Path, out: Path) -> dict[str, Any]:
    """Runs a step in a new process."""
    command = [sys.executable, "-W", "ignore", __file__, "--step", step, "--only", name, str(source), str(out)]
    answer = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(name: str, rounds: int, parent: Path) -> dict[str, Any]:
    """Converts a random model there and back, in turn with copying it; the files are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="bench-conversion-", dir=parent))
    hf, checkpoint, again, copied = (directory / part for part in ("hf", "checkpoint", "again", "copied"))
    try:
        in_process("make", name, hf, hf)
        found: dict[str, Any] = {"bytes": size_of(hf), **{step: [] for step in STEPS}}
        for number in range(rounds):
            found["copy"].append(in_process("copy", name, hf, copied))
            # Three copies of a 7B are enough for a disk.
            shutil.rmtree(copied)
            found["from-hf"].append(in_process("from-hf", name, hf, checkpoint))
            found["to-hf"].append(in_process("to-hf", name, checkpoint, again))
            # Once: it takes as long as all the rest.
            if number == 0:
                found["verify"].append(in_process("verify", name, checkpoint, again))
            assert same_bytes(hf, again)
            for folder in (checkpoint, again):
                shutil.rmtree(folder)
        return found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def same_bytes(left: Path, right: Path) -> bool:
    """Whether the weight files are the same."""
    return all(
        hashlib.file_digest(path.open("rb"), "sha256").digest()
        == hashlib.file_digest((right / path.name).open("rb"), "sha256").digest()
        for path in left.glob("*.safetensors")
    )


def row_of(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    seconds = {step: statistics.median(run["seconds"] for run in found[step]) for step in STEPS}
    peaks = {step: max(run["peak_bytes"] for run in found[step]) for step in STEPS}
    ratios = [
        (there["seconds"] + back["seconds"]) / copy["seconds"]
        for copy, there, back in zip(*(found[step] for step in STEPS[:3]), strict=True)
    ]
    return (
        f"| {name} | {found['bytes'] / 1e9:.2f} | {seconds['copy']:.1f} | {seconds['from-hf']:.1f} | "
        f"{seconds['to-hf']:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
        f"{peaks['from-hf'] / 2**30:.2f} | {peaks['to-hf'] / 2**30:.2f} | {seconds['verify']:.1f} | "
        f"{peaks['verify'] / 2**30:.2f} | {max(run['max_difference'] for run in found['verify']):.1g} |"
    )


HEAD = (
    "| model | GB | copy s | from-hf s | to-hf s | both / copy | from-hf GiB | to-hf GiB | verify s | verify GiB | "
    "largest difference |"
)


def section(rows: list[str], rounds: int, busy: float) -> list[str]:
    """The benchmark's part of docs/benchmarks.md."""
    return [
        "## Conversion (`make bench-convert`)",
        "",
        machine_line(busy),
        (
            f"Random models in bf16, {rounds} {'round' if rounds == 1 else 'rounds'}, medians of seconds, largest "
            "peaks. `copy` reads, hashes (sha256), writes and syncs the same bytes once; `both / copy` is import and "
            "export together against it, with the lowest and the highest round; the bar is 2. Memory is what a process "
            "holds of its own; the bar is 1.5 GiB and the largest tensor. `verify` is the check layer by layer."
        ),
        "",
        HEAD,
        "|---" * (HEAD.count("|") - 1) + "|",
        *rows,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of copying and converting")
    parser.add_argument("--only", choices=MODELS, action="append", help="models to measure (all but 7B)")
    parser.add_argument("--directory", type=Path, default=ROOT, help="where to write; tells which disk is measured")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("folders", type=Path, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        run_step(options.step, options.only[0], *options.folders)
        return
    busy = psutil.cpu_percent(interval=2.0)
    names = options.only or [name for name in MODELS if not name.startswith("7B")]
    rows = []
    for name in names:
        rows.append(row_of(name, measure(name, options.rounds, options.directory)))
        print(rows[-1], flush=True)
    lines = section(rows, options.rounds, busy)
    print("\n".join(lines))
    if options.write:
        write_section("bench-convert", lines)


if __name__ == "__main__":
    main()
