"""The encoder alone on one core, against gigatoken and bpe-qwen: part of `make bench-data`.

Texts in pieces of 4,000 characters are encoded for the first time. Code is the running Python's standard library with a
fifth of its words made new (bench_tokenize.py); texts of other kinds are named by the caller, JSON Lines with the key
`text`:

  python benchmarks/bench_encoder.py --text English=books.jsonl --text Chinese=wiki.jsonl

Every run is a process of its own and begins with empty caches, on memory that nobody has touched: a second encoder of
the same process is up to 1.6 times as fast as the first. Texts are UTF-8 bytes, as files have them, where a contestant
takes those. Contestants take turns; speeds are medians of MB per second of processor time, ratios medians of those
within a round. Who gives other ids than ours is named. A peer that is not installed is left out:
pip install --no-deps bpe-qwen
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
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

Encode = Callable[[Any], Any]


def ours() -> Encode:
    encoder = NativeEncoder()
    return lambda texts: encoder.kernel.encode_batch(texts)[0]


def gigatokens() -> Encode:
    tokenizer = gigatoken()
    return lambda texts: np.concatenate([tokenizer.encode(text) for text in texts])


def bpe_qwens() -> Encode:
    import bpe_qwen

    from qwen_megatron.convert.hf_tokenizer import build_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer().model.save(folder)
        tokenizer = bpe_qwen.QwenTokenizer(f"{folder}/")
    # Faster than its `encode`, which makes a Python integer of each id. It takes no bytes.
    return lambda texts: np.concatenate([np.frombuffer(tokenizer.encode_bytes(text), "<u4") for text in texts])


CONTESTANTS: dict[str, Callable[[], Encode]] = {"ours": ours, "gigatoken": gigatokens, "bpe-qwen": bpe_qwens}
TAKE_STRINGS = ("bpe-qwen",)


def contestant(name: str, path: Path, megabytes: float) -> None:
    """Runs in a process of its own; prints MB, seconds of processor time and a digest of the ids."""
    encode = CONTESTANTS[name]()
    pieces = load(path, megabytes)
    contents = [piece.encode() for piece in pieces]
    texts: Sequence[str] | Sequence[bytes] = pieces if name in TAKE_STRINGS else contents
    start = time.thread_time()
    ids = encode(texts)
    seconds = time.thread_time() - start
    digest = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()
    print(json.dumps([sum(map(len, contents)) / 1e6, seconds, digest]))


def timed(name: str, path: Path, megabytes: float) -> tuple[float, float, str]:
    command = [sys.executable, "-W", "ignore", __file__, "--contestant", name, str(path), str(megabytes)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    encoded_megabytes, seconds, digest = json.loads(result.stdout.splitlines()[-1])
    return encoded_megabytes, seconds, digest


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


def contest(kind: str, path: Path, wanted_megabytes: float, names: Sequence[str], rounds: int) -> list[str]:
    speeds: dict[str, list[float]] = {name: [] for name in names}
    digests: dict[str, str] = {}
    for _ in range(rounds):
        for name in names:
            megabytes, seconds, digests[name] = timed(name, path, wanted_megabytes)
            speeds[name].append(megabytes / seconds)
    lines = []
    for name, values in speeds.items():
        ratios = [mine / its for mine, its in zip(speeds["ours"], values, strict=True)]
        ratio = (
            "" if name == "ours" else f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        )
        same = "" if digests[name] == digests["ours"] else "; OTHER IDS"
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
    parser.add_argument("--contestant", nargs=3, metavar=("NAME", "INPUT", "MB"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contestant(arguments.contestant[0], Path(arguments.contestant[1]), float(arguments.contestant[2]))
        return
    load_average = Path("/proc/loadavg").read_text().split()[0]
    lines = [
        "## The encoder alone (`benchmarks/bench_encoder.py`)",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, load average {load_average} at the start. {versions()}.",
        f"One thread, processor time, {arguments.rounds} rounds, every run a process of its own.",
        "",
        "| text | contestant | MB/s | ours / it | bar |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "code.jsonl", arguments.megabytes)
        names = [name for name in CONTESTANTS if name != "bpe-qwen" or importlib.util.find_spec("bpe_qwen")]
        if len(names) < len(CONTESTANTS):
            print("bench-encoder: bpe-qwen left out: not installed", flush=True)
        for kind, _, path in [("code", "", folder / "code.jsonl"), *(text.partition("=") for text in arguments.text)]:
            rows = contest(kind, Path(path), arguments.megabytes, names, arguments.rounds)
            print("\n".join(rows), flush=True)
            lines += rows
    if arguments.write:
        write_section("bench-encoder", lines)


if __name__ == "__main__":
    main()
