"""A vocabulary continued against one learned from nothing: compression, time, memory; `make bench-augment`.

The texts are the user's: LANGUAGE=FILE, as `qwen-data tokenizer augment` takes them. The other contestant is the
trainer of the package tokenizers with the same pattern, on the same texts, to the same number of tokens. Every run is a
process of its own whose clock starts when texts lie in memory and modules are imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from bench_data import processor
from results import write_section

from data_tools.readers.inputs import read_records
from data_tools.readers.jsonl import MAX_DOCUMENT_BYTES
from data_tools.readers.record import ReadOptions, Record
from data_tools.text.normalization import nfc

THREADS = 2
FULL = 151_643
NUM_BASE = 99_156
SIZES = (NUM_BASE + 5_000, NUM_BASE + 20_000, FULL)
# Of ten, the parts of the documents that growth is measured on.
TENTHS = (1, 3, 10)
PIECE_CHARACTERS = 20_000


def write_texts(inputs: Sequence[str], path: Path, tenths: int = 10) -> int:
    """Writes lines of language and text, long texts in pieces, so many tenths of them; returns the bytes of text."""
    num_bytes = number = 0
    options = ReadOptions(text_key="text", max_document_bytes=MAX_DOCUMENT_BYTES)
    with path.open("wb") as stream:
        for one in inputs:
            language, _, pattern = one.partition("=")
            for _, record in read_records(pattern, options):
                if not isinstance(record, Record):
                    continue
                for piece in pieces(nfc(record.text)):
                    if number * 7 % 10 < tenths:
                        num_bytes += len(piece.encode())
                        stream.write(orjson.dumps([language, piece], option=orjson.OPT_APPEND_NEWLINE))
                    number += 1
    return num_bytes


def pieces(text: str) -> list[str]:
    """Whole lines, together some PIECE_CHARACTERS."""
    found, begin = [], 0
    while begin < len(text):
        end = text.find("\n", begin + PIECE_CHARACTERS) + 1 or len(text)
        found.append(text[begin:end])
        begin = end
    return found


def read_texts(path: Path) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for line in path.read_bytes().splitlines():
        language, text = orjson.loads(line)
        texts[language].append(text)
    return texts


def ours(texts: dict[str, list[str]], size: int) -> dict[str, Any]:
    from data_tools.tokenizer.augment import CorpusCounts, LearningOptions, augment
    from data_tools.tokenizer.rank_file import cl100k_base

    base = cl100k_base()
    start, used = time.perf_counter(), time.process_time()
    corpus = CorpusCounts(THREADS)
    for language, ones in texts.items():
        for text in ones:
            corpus.add(text, language)
    corpus.flush()
    made = augment(base, corpus, LearningOptions(size=size, threads=THREADS))
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - used
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "size": len(made.tokens),
        "bytes": {language: one.num_bytes for language, one in made.languages.items()},
        "base": {language: one.base_tokens for language, one in made.languages.items()},
        "tokens": {language: one.tokens for language, one in made.languages.items()},
    }


def scratch(texts: dict[str, list[str]], size: int) -> dict[str, Any]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from data_tools.tokenizer.qwen import PATTERN

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    start = time.perf_counter()
    tokenizer.train_from_iterator([text for ones in texts.values() for text in ones], trainer)
    seconds = time.perf_counter() - start
    tokens = {language: sum(len(one.ids) for one in tokenizer.encode_batch(ones)) for language, ones in texts.items()}
    return {"seconds": seconds, "size": tokenizer.get_vocab_size(), "tokens": tokens}


CONTESTANTS = {"ours": ours, "tokenizers": scratch}


def contestant(name: str, path: Path, size: int) -> None:
    """Runs in a process of its own; prints the result, with how far memory grew above the texts in MiB."""
    texts = read_texts(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = CONTESTANTS[name](texts, size)
    result["mebibytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps(result))


def run(name: str, path: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--contestant", name, str(path), str(size)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def rate(num_bytes: dict[str, int], tokens: dict[str, int]) -> float:
    """Bytes per token of all languages together."""
    return sum(num_bytes.values()) / sum(tokens.values())


def compression(path: Path, sizes: Sequence[int]) -> tuple[list[str], dict[int, tuple[dict[str, Any], dict[str, Any]]]]:
    """A row for each size: all texts together; and the results."""
    heads = (
        "| tokens | of them new | bytes/token | base | from nothing | from nothing / ours | least gain of a language"
    )
    lines = [f"{heads} | s | from nothing, s |", "|---|---|---|---|---|---|---|---|---|"]
    results = {}
    for size in sizes:
        mine = run("ours", path, size)
        theirs = run("tokenizers", path, mine["size"])
        results[size] = (mine, theirs)
        gains = {language: mine["base"][language] / mine["tokens"][language] - 1 for language in mine["tokens"]}
        least = min(gains, key=gains.__getitem__)
        here, nothing = rate(mine["bytes"], mine["tokens"]), rate(mine["bytes"], theirs["tokens"])
        cells = [
            f"{mine['size']:,}",
            f"{mine['size'] - NUM_BASE:,}",
            f"{here:.3f}",
            f"{rate(mine['bytes'], mine['base']):.3f}",
            f"{nothing:.3f}",
            f"**{nothing / here:.3f}**",
            f"{least} {gains[least]:+.1%}",
            f"{mine['seconds']:.1f}",
            f"{theirs['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines, results


def by_language(results: dict[int, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Bytes per token of each language at every size."""
    heads = " | ".join(f"{mine['size'] - NUM_BASE:,} new" for mine, _ in results.values())
    lines = [
        f"| language | MB | base | {heads} | from nothing, as many |",
        "|---|---|---|" + "---|" * (len(results) + 1),
    ]
    last, theirs = results[max(results)]
    for language, num_bytes in last["bytes"].items():
        rates = " | ".join(f"{num_bytes / mine['tokens'][language]:.2f}" for mine, _ in results.values())
        lines.append(
            f"| {language} | {num_bytes / 1e6:.2f} | {num_bytes / last['base'][language]:.2f} | {rates} | "
            f"{num_bytes / theirs['tokens'][language]:.2f} |"
        )
    return lines


def growth(inputs: Sequence[str], folder: Path, rounds: int) -> list[str]:
    """The time and memory of the whole size on parts of the texts; the run that took the processor least."""
    lines = [
        "| MB of text | new tokens | processor s | processor ns/byte | s | MiB beyond the texts |",
        "|---|---|---|---|---|---|",
    ]
    for tenths in TENTHS:
        path = folder / "part.jsonl"
        num_bytes = write_texts(inputs, path, tenths)
        runs = [run("ours", path, FULL) for _ in range(rounds)]
        best = min(runs, key=lambda one: float(one["processor_seconds"]))
        used, memory = best["processor_seconds"], max(one["mebibytes"] for one in runs)
        cells = [
            f"{num_bytes / 1e6:.1f}",
            f"{best['size'] - NUM_BASE:,}",
            f"{used:.2f}",
            f"{used / num_bytes * 1e9:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} | {best['seconds']:.2f} | {memory} |")
    return lines


def versions() -> str:
    names = ("tokenizers", "numpy")
    return f"Python {platform.python_version()}, " + ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", metavar="LANGUAGE=FILE", help="texts")
    parser.add_argument("--small", nargs="+", default=[], metavar="LANGUAGE=FILE", help="a second set, by itself")
    parser.add_argument("--texts", default="", help="what the texts are, for the document")
    parser.add_argument("--small-texts", default="", help="what the second set is")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--contestant", nargs=3, metavar=("NAME", "TEXTS", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        name, path, size = arguments.contestant
        contestant(name, Path(path), int(size))
        return
    if not arguments.inputs:
        parser.error("no texts: give some, each as LANGUAGE=FILE")
    load = Path("/proc/loadavg").read_text().split()[0]
    lines = [
        "## Continued vocabularies (`make bench-augment`)",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, load average {load} at the start. {versions()}.",
        f"{THREADS} threads. The base is cl100k_base without its runs of digits, {NUM_BASE:,} tokens.",
        '"From nothing" is the trainer of tokenizers with the same pattern and texts, to as many tokens: all',
        "of them are made for these texts, of ours only the new ones. Seconds are wall clock; beside other work only",
        "processor seconds compare.",
        "",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for inputs, title, sizes in (
            (arguments.inputs, arguments.texts, SIZES),
            (arguments.small, arguments.small_texts, SIZES[-1:]),
        ):
            if inputs:
                num_bytes = write_texts(inputs, folder / "texts.jsonl")
                rows, results = compression(folder / "texts.jsonl", sizes)
                lines += [f"### {num_bytes / 1e6:.1f} MB: {title or 'texts'}", "", *rows, "", *by_language(results), ""]
        lines += ["### Growth", "", *growth(arguments.inputs, folder, arguments.rounds)]
    print("\n".join(lines))
    if arguments.write:
        write_section("bench-augment", lines)


if __name__ == "__main__":
    main()
