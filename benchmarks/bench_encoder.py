"""The encoder alone on one core, against gigatoken and bpe-qwen: part of `make bench-data`.

Texts in pieces of 4,000 characters are encoded for the first time, by encoders whose caches are empty. Code is the
running Python's standard library with a fifth of its words made new (bench_tokenize.py); texts of other kinds are named
by the caller, JSON Lines with the key `text`:

  python benchmarks/bench_encoder.py --text English=books.jsonl --text Chinese=wiki.jsonl

Contestants take turns; speeds are medians of MB per second of processor time, ratios medians of those within a round.
Who gives other ids than ours is named. A peer that is not installed is left out: pip install bpe-qwen
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from bench_data import processor
from bench_tokenize import gigatoken, versions, write_text
from results import write_section

from data_tools.text.normalization import nfc
from data_tools.tokenizer.encoder import NativeEncoder

PIECE_CHARACTERS = 4000
BAR = 1.2

Encode = Callable[[Sequence[str]], Any]


def ours() -> Encode:
    encoder = NativeEncoder()
    return lambda texts: encoder.encode_batch(texts).tokens


def gigatokens() -> Encode:
    tokenizer = gigatoken()
    return lambda texts: np.concatenate([tokenizer.encode(text) for text in texts])


def bpe_qwens(folder: Path) -> Encode:
    import bpe_qwen

    from qwen_megatron.convert.hf_tokenizer import build_tokenizer

    if not (folder / "merges.txt").exists():
        build_tokenizer().model.save(str(folder))
    tokenizer = bpe_qwen.QwenTokenizer(f"{folder}/")
    return lambda texts: [token for text in texts for token in tokenizer.encode(text)]


def load(path: Path, megabytes: float) -> list[str]:
    """The first pieces of the texts of a file, in NFC."""
    pieces: list[str] = []
    num_bytes = 0
    with path.open("rb") as lines:
        for line in lines:
            text = nfc(orjson.loads(line)["text"])
            for start in range(0, len(text), PIECE_CHARACTERS):
                pieces.append(text[start : start + PIECE_CHARACTERS])
                num_bytes += len(pieces[-1].encode())
            if num_bytes >= megabytes * 1e6:
                break
    return pieces


def contest(kind: str, texts: Sequence[str], makers: dict[str, Callable[[], Encode]], rounds: int) -> list[str]:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    speeds: dict[str, list[float]] = {name: [] for name in makers}
    ids: dict[str, Any] = {}
    for _ in range(rounds):
        for name, make in makers.items():
            encode = make()
            start = time.thread_time()
            ids[name] = encode(texts)
            speeds[name].append(megabytes / (time.thread_time() - start))
    lines = []
    for name, values in speeds.items():
        ratios = [mine / its for mine, its in zip(speeds["ours"], values, strict=True)]
        ratio = (
            "" if name == "ours" else f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        )
        same = "" if np.array_equal(ids[name], ids["ours"]) else "; OTHER IDS"
        bar = "" if name == "ours" else str(BAR)
        lines.append(
            f"| {kind}, {megabytes:.1f} MB | {name}{same} | {statistics.median(values):.0f} | {ratio} | {bar} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", default=[], metavar="KIND=FILE", help="JSON Lines with the key text")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    arguments = parser.parse_args()
    load_average = Path("/proc/loadavg").read_text().split()[0]
    lines = [
        "## The encoder alone (`benchmarks/bench_encoder.py`)",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, load average {load_average} at the start. {versions()}.",
        f"One thread, processor time, {arguments.rounds} rounds, caches empty at the start of each.",
        "",
        "| text | contestant | MB/s | ours / it | bar |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "code.jsonl", arguments.megabytes)
        makers: dict[str, Callable[[], Encode]] = {"ours": ours, "gigatoken": gigatokens}
        try:
            bpe_qwens(folder)
            makers["bpe-qwen"] = partial(bpe_qwens, folder)
        except ImportError as error:
            print(f"bench-encoder: bpe-qwen left out: {error}", flush=True)
        for kind, _, path in [("code", "", folder / "code.jsonl"), *(text.partition("=") for text in arguments.text)]:
            rows = contest(kind, load(Path(path), arguments.megabytes), makers, arguments.rounds)
            print("\n".join(rows), flush=True)
            lines += rows
    if arguments.write:
        write_section("bench-encoder", lines)


if __name__ == "__main__":
    main()
