"""JSON Lines to a corpus against Megatron-LM's two ways, and the index builder: second half of `make bench-data`.

The text is the running Python's standard library in pieces of about 4 kB, copied until it is long enough; in every copy
a fifth of the words of each piece is replaced by new compounds, so that caches of words stay as cold as in real text.
Every run is a process of its own and begins with empty caches; its clock starts when its modules are imported, so that
ours pays for starting its workers and the peers do not pay for importing torch. Contestants take turns; times are
medians over rounds, ratios medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import keyword
import multiprocessing
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from bench_data import documents, processor
from results import write_section

from data_tools.io.streams import decompressed_pieces

BATCH = 10_000
END = 151_643
WORKERS = 2


def write_text(path: Path, megabytes: float) -> None:
    """Generates the input."""
    pieces = documents(10**9)
    word = re.compile(r"[A-Za-z]{3,}")
    words = sorted({found for piece in pieces for found in word.findall(piece)})
    chooser = random.Random(1)

    def varied(piece: str) -> str:
        names: dict[str, str] = {}

        def new_name(match: re.Match[str]) -> str:
            old = match[0]
            if old not in names:
                kept = keyword.iskeyword(old) or chooser.random() < 0.8
                names[old] = old if kept else chooser.choice(words) + chooser.choice(words).capitalize()
            return names[old]

        return word.sub(new_name, piece)

    with path.open("wb") as stream:
        while True:
            for piece in pieces:
                stream.write(orjson.dumps({"text": varied(piece)}, option=orjson.OPT_APPEND_NEWLINE))
                if stream.tell() >= megabytes * 1e6:
                    return


def gigatoken() -> Any:
    """The fast encoder, its caches empty."""
    import gigatoken

    from data_tools.tokenizer.qwen import vocab_path

    return gigatoken.Tokenizer.from_tiktoken(str(vocab_path()), pretokenizer="qwen2", special_tokens={})


def ours(source: Path, prefix: Path) -> Callable[[], None]:
    from data_tools.allocator import KEPT_BYTES, keep_freed_blocks
    from data_tools.stages.tokenize_files import TokenizeOptions, tokenize

    def run() -> None:
        keep_freed_blocks(KEPT_BYTES, few_heaps=True)  # As the command does.
        tokenize([source], prefix, TokenizeOptions(workers=WORKERS))

    return run


def megatron_fast(source: Path, prefix: Path) -> Callable[[], None]:
    """Lines, json, encode_batch on two threads, the awkward array flattened and written a batch at a time."""
    import awkward
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    def run() -> None:
        tokenizer = gigatoken()
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)

        def flush(texts: list[str]) -> None:
            ids = awkward.values_astype(tokenizer.encode_batch(texts, parallel=True), np.int32)
            ids = awkward.concatenate([ids, np.full((len(texts), 1), END, dtype=np.int32)], axis=1)
            first = len(builder.sequence_lengths)
            builder.data_file.write(awkward.to_numpy(awkward.flatten(ids)).tobytes())
            builder.sequence_lengths.extend(awkward.num(ids).to_list())
            builder.document_indices.extend(range(first + 1, first + len(texts) + 1))

        texts: list[str] = []
        with source.open(encoding="utf-8") as lines:
            for line in lines:
                texts.append(json.loads(line)["text"])
                if len(texts) == BATCH:
                    flush(texts)
                    texts = []
        flush(texts)
        builder.finalize(f"{prefix}.idx")

    return run


_classic: Any = None


def _start_classic() -> None:
    global _classic
    from data_tools.tokenizer.qwen import _encoding

    _classic = _encoding()


def _encode_classic(line: str) -> list[int]:
    return [*_classic.encode_ordinary(json.loads(line)["text"]), END]


def megatron_classic(source: Path, prefix: Path) -> Callable[[], None]:
    """A pool of two processes, json and tiktoken in it, add_item for each document outside."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    def run() -> None:
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
        pool = multiprocessing.get_context("fork").Pool(WORKERS, initializer=_start_classic)
        with pool, source.open(encoding="utf-8") as lines:
            for ids in pool.imap(_encode_classic, lines, 32):
                builder.add_item(torch.IntTensor(ids))
                builder.end_document()
        builder.finalize(f"{prefix}.idx")

    return run


def encoder_alone(source: Path, prefix: Path) -> Callable[[], None]:
    """Text in memory to ids in memory, two threads, one batch."""
    tokenizer = gigatoken()
    texts = [orjson.loads(line)["text"] for line in source.read_bytes().splitlines()]

    def run() -> None:
        tokenizer.encode_batch(texts, parallel=True)

    return run


CONTESTANTS = {
    "ours": (ours, None),
    "Megatron-LM's fast loop (gigatoken, awkward)": (megatron_fast, 1.5),
    "Megatron-LM's classic loop (tiktoken)": (megatron_classic, 12.0),
    "gigatoken alone": (encoder_alone, 1.0),
}


def contestant(name: str, source: Path, prefix: Path) -> None:
    """Runs in a process of its own; prints seconds and the peak memory of the largest process in MiB."""
    run = CONTESTANTS[name][0](source, prefix)
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024
    print(json.dumps([seconds, peak]))


def timed(name: str, source: Path) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--contestant", name, str(source), f"{folder}/c"]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, peak = json.loads(result.stdout.splitlines()[-1])
    return seconds, peak


def table(header: str, results: dict[str, list[float]], bars: dict[str, float | None], unit: float) -> list[str]:
    """A row for each contestant: median time, work per second, ratio to ours."""
    lines = [header, "|---|---|---|---|---|"]
    for name, seconds in results.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds, results["ours"], strict=True)]
        ratio = (
            "" if name == "ours" else f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        )
        median = statistics.median(seconds)
        lines.append(f"| {name} | {median:.2f} | {unit / median:,.1f} | {ratio} | {bars[name] or ''} |")
    return lines


def tokenization(folder: Path, megabytes: float, rounds: int) -> list[str]:
    source = folder / "text.jsonl"
    write_text(source, megabytes)
    results: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peaks: dict[str, int] = dict.fromkeys(CONTESTANTS, 0)
    for _ in range(rounds):
        for name in CONTESTANTS:
            seconds, peak = timed(name, source)
            results[name].append(seconds)
            peaks[name] = max(peaks[name], peak)
    bars = {name: bar for name, (_, bar) in CONTESTANTS.items()}
    lines = table(f"| {megabytes:g} MB of JSON Lines | s | MB/s | its time / ours | bar |", results, bars, megabytes)
    lines += ["", "Peak memory of the largest process: " + ", ".join(f"{n} {p} MiB" for n, p in peaks.items()) + "."]
    lines += ["", "| ours, JSON Lines of | s | MB/s | peak of a process |", "|---|---|---|---|"]
    for size in (megabytes / 10, megabytes / 3, megabytes):
        write_text(source, size)
        runs = [timed("ours", source) for _ in range(rounds)]
        median = statistics.median(seconds for seconds, _ in runs)
        peak = max(peak for _, peak in runs)
        lines.append(f"| {size:.0f} MB | {median:.2f} | {size / median:.1f} | {peak} MiB |")
    return lines


def compressed(folder: Path, rounds: int) -> list[str]:
    """The text of `tokenization`, compressed, and how long decompression alone takes."""
    source = folder / "text.jsonl"
    commands = {"plain": None, "gzip": ["gzip", "-k"], "zstd": ["zstd", "-q", "-k"]}
    lines = ["| ours, the same text | s | decompression alone, s | without it, against plain |", "|---|---|---|---|"]
    paths = {
        name: source.with_suffix(f".jsonl{suffix}") for name, suffix in zip(commands, ("", ".gz", ".zst"), strict=True)
    }
    plain: list[float] = []
    for name, command in commands.items():
        if command is not None:
            subprocess.run([*command, str(source)], check=True)
        runs = [timed("ours", paths[name])[0] for _ in range(rounds)]
        start = time.perf_counter()
        with paths[name].open("rb") as stream:
            for _ in decompressed_pieces(stream, str(paths[name])):
                pass
        alone = time.perf_counter() - start if command is not None else 0.0
        plain = plain or runs
        ratio = (statistics.median(runs) - alone) / statistics.median(plain)
        lines.append(f"| {name} | {statistics.median(runs):.2f} | {alone:.2f} | {ratio:.2f} |")
    return lines


def index_build(folder: Path, num_documents: int, rounds: int) -> list[str]:
    """Lengths in memory, in the form that each builder has them, to an .idx."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from data_tools import _native

    lengths = np.random.default_rng(1).integers(1, 2000, num_documents, dtype=np.int32)
    results: dict[str, list[float]] = {"ours": [], "megatron-core": []}
    for _ in range(rounds):
        start = time.perf_counter()
        _native.write_index(bytes(folder / "ours.idx"), lengths, 4, 4)
        results["ours"].append(time.perf_counter() - start)
        builder = IndexedDatasetBuilder(str(folder / "megatron.bin"), dtype=np.int32)
        builder.sequence_lengths = lengths.tolist()
        builder.document_indices = list(range(num_documents + 1))
        start = time.perf_counter()
        builder.finalize(str(folder / "megatron.idx"))
        results["megatron-core"].append(time.perf_counter() - start)
    assert (folder / "ours.idx").read_bytes() == (folder / "megatron.idx").read_bytes()
    header = f"| index of {num_documents:,} documents | s | million/s | its time / ours | bar |"
    return table(header, results, {"ours": None, "megatron-core": 5.0}, num_documents / 1e6)


def merging(folder: Path, num_tokens: int, mean_length: int, rounds: int) -> list[str]:
    """Two corpora to one, on the disk: ours checks the inputs and takes checksums, megatron-core's only copies."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from data_tools import _native
    from data_tools.corpus.import_corpus import import_corpus
    from data_tools.corpus.merge import merge
    from data_tools.io.atomic_file import sync_files

    generator = np.random.default_rng(1)
    prefixes = [folder / f"part{number}-{mean_length}" for number in range(2)]
    for prefix in prefixes:
        lengths = generator.integers(2, 2 * mean_length - 1, num_tokens // 2 // mean_length, dtype=np.int32)
        tokens = generator.integers(0, END, int(lengths.sum()), dtype=np.int32)
        tokens[np.cumsum(lengths) - 1] = END
        tokens.tofile(f"{prefix}.bin")
        _native.write_index(f"{prefix}.idx".encode(), lengths, 4, 4)
        import_corpus(prefix)
    results: dict[str, list[float]] = {"ours": [], "megatron-core": []}
    for _ in range(rounds):
        start = time.perf_counter()
        merge(prefixes, folder / "ours", overwrite=True)
        results["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        builder = IndexedDatasetBuilder(str(folder / "megatron.bin"), dtype=np.int32)
        for prefix in prefixes:
            builder.add_index(str(prefix))
        builder.finalize(str(folder / "megatron.idx"))
        sync_files([folder / "megatron.bin", folder / "megatron.idx"])
        results["megatron-core"].append(time.perf_counter() - start)
    assert (folder / "ours.idx").read_bytes() == (folder / "megatron.idx").read_bytes()
    header = (
        f"| merge of {num_tokens / 1e6:.0f} M tokens, {mean_length} a document | s | MB/s | its time / ours | bar |"
    )
    return table(header, results, {"ours": None, "megatron-core": 1.3}, 4 * num_tokens / 1e6)


def verifying(folder: Path, megabytes: int, rounds: int) -> list[str]:
    """`qwen-data verify` of a corpus in memory, by one thread and by one for each core."""
    from data_tools import _native
    from data_tools.corpus.import_corpus import import_corpus
    from data_tools.corpus.verify import verify

    prefix = folder / f"whole-{megabytes}"
    lengths = np.full(megabytes * 250, 1000, dtype=np.int32)
    tokens = np.random.default_rng(1).integers(0, END, int(lengths.sum()), dtype=np.int32)
    tokens[np.cumsum(lengths) - 1] = END
    tokens.tofile(f"{prefix}.bin")
    del tokens
    _native.write_index(f"{prefix}.idx".encode(), lengths, 4, 4)
    import_corpus(prefix)
    lines = [f"| verify of {megabytes} MB, workers | s | MB/s |", "|---|---|---|"]
    for workers in (1, WORKERS):
        runs = []
        for _ in range(rounds):
            start = time.perf_counter()
            verify(prefix, workers=workers)
            runs.append(time.perf_counter() - start)
        lines.append(f"| {workers} | {statistics.median(runs):.2f} | {megabytes / statistics.median(runs):,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200.0, help="text to tokenize")
    parser.add_argument("--documents", type=int, default=10_000_000, help="documents of the index")
    parser.add_argument("--merge-tokens", type=int, default=100_000_000, help="tokens of the merged corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("tokenization", "compressed", "index", "merge", "verify"))
    parser.add_argument("--folder", type=Path, help="where all files go; default: a temporary folder")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--contestant", nargs=3, metavar=("NAME", "INPUT", "PREFIX"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        name, source, prefix = arguments.contestant
        contestant(name, Path(source), Path(prefix))
        return
    if arguments.write and arguments.only:
        parser.error("--write takes the whole section; leave out --only")
    load = Path("/proc/loadavg").read_text().split()[0]
    lines = [
        "## Tokenization, index, merge, verification (`make bench-data`)",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, load average {load} at the start. {versions()}.",
        f"{WORKERS} workers or threads, {arguments.rounds} rounds, wall clock, caches of words empty.",
        "",
    ]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        sections = {
            "tokenization": [lambda: tokenization(folder, arguments.megabytes, arguments.rounds)],
            "compressed": [lambda: compressed(folder, arguments.rounds)],
            "index": [lambda: index_build(folder, arguments.documents, arguments.rounds)],
            "merge": [
                lambda: merging(folder, arguments.merge_tokens, 50, arguments.rounds),
                lambda: merging(folder, arguments.merge_tokens, 1000, arguments.rounds),
            ],
            "verify": [
                lambda: verifying(folder, 400, arguments.rounds),
                lambda: verifying(folder, 2000, arguments.rounds),
            ],
        }
        for kind in arguments.only or sections:
            for section in sections[kind]:
                rows = [*section(), ""]
                print("\n".join(rows), flush=True)
                lines += rows
    if arguments.write:
        write_section("bench-tokenize", lines)


def versions() -> str:
    import importlib.metadata
    import platform

    names = ("gigatoken", "tiktoken", "megatron-core", "awkward", "numpy")
    return f"Python {platform.python_version()}, " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


if __name__ == "__main__":
    main()
