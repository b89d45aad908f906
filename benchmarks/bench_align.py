"""Reward models on real pairs: 64 of them learned by heart, and the accuracy on pairs held out, with its interval.

    python benchmarks/bench_align.py --pairs harmless-base-test.jsonl.gz --write

The file is one that `qwen-data chat --kind pairs` takes; of its pairs those of up to `--length` tokens are used. A
model of the tiny preset in Qwen's vocabulary starts from random weights: it shows that the job learns, not what a good
reward model reaches.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
from results import machine_line, write_section

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_tools.chat.chat_corpus import ChatCorpus  # noqa: E402
from data_tools.chat.chat_writer import write_chat_corpus  # noqa: E402
from data_tools.cli import main as qwen_data  # noqa: E402
from qwen_megatron.cli.main import main as qwen_megatron  # noqa: E402

FEW = 64
SETTINGS = (
    "parallel.platform=cpu",
    "model.preset=tiny",
    "model.num_layers=2",
    "training.precision=fp32",
    "optimizer.lr_warmup_iters=5",
    "data.num_workers=0",
    "logging.tensorboard=false",
    "logging.log_interval=20",
)


def few_pairs(corpus: ChatCorpus, prefix: Path) -> Path:
    """The first pairs of a corpus as one of their own."""
    write_chat_corpus(
        prefix,
        (corpus.document(number) for number in range(2 * FEW)),
        kind="pairs",
        tokenizer=corpus.tokenizer,
        end_of_turn=corpus.end_of_turn,
        end_of_document=corpus.sidecar.end_of_document,
    )
    return prefix


def train(folder: Path, corpus: Path, length: int, *more: str) -> list[dict[str, float]]:
    """Trains a reward model; rows of its metrics."""
    settings = [*SETTINGS, f"training.seq_length={length}", f"data.blend=[{corpus}]", f"checkpoint.directory={folder}"]
    if qwen_megatron(["reward", *settings, *more]):
        raise SystemExit(f"{folder}: the run failed")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=Path, required=True, help="a file of pairs with chosen and rejected")
    parser.add_argument("--length", type=int, default=256, help="tokens of a dialogue (256)")
    parser.add_argument("--held-out", type=int, default=400, help="pairs held out (400)")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the others (1)")
    parser.add_argument("--write", action="store_true", help="replace the section in docs/benchmarks.md")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    busy = psutil.cpu_percent(interval=1.0)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limit = ["--max-tokens", str(args.length)]
        if qwen_data(["chat", str(args.pairs), "--kind", "pairs", "--output", str(folder / "pairs"), *limit]):
            raise SystemExit(f"{args.pairs}: is no file of pairs")
        corpus = ChatCorpus.open(folder / "pairs")
        heart = train(
            folder / "heart",
            few_pairs(corpus, folder / "few"),
            args.length,
            "training.train_iters=40",
            "training.global_batch_size=16",
            "training.micro_batch_size=16",
            "optimizer.lr=3e-3",
        )
        by_heart = sum(row["accuracy"] for row in heart[-4:]) / 4
        rows = train(
            folder / "held",
            folder / "pairs",
            args.length,
            f"training.train_epochs={args.epochs}",
            "training.global_batch_size=32",
            "training.micro_batch_size=16",
            f"data.eval_samples={args.held_out}",
            "optimizer.lr=1e-3",
        )
    before, after = (row for row in rows if "eval_loss" in row)
    used = f"{args.pairs.name}: {corpus.num_documents // 2:,} pairs of up to {args.length} tokens"
    seconds = time.process_time() - started
    interval = f"{after['accuracy_low']:.3f} to {after['accuracy_high']:.3f}"
    losses = f"{before['eval_loss']:.3f} | {after['eval_loss']:.3f}"
    lines = [
        "## Reward models on real pairs",
        "",
        machine_line(busy),
        f"{used}; tiny preset, 2 layers, from random weights; {seconds:.0f} s of processor time.",
        "",
        "| pairs | trained for | accuracy | 95 % interval | loss before | loss after |",
        "|---|---|---|---|---|---|",
        f"| {FEW} trained on | 10 epochs | {by_heart:.3f} | | {heart[0]['loss']:.3f} | {heart[-1]['loss']:.4f} |",
        f"| {after['pairs']:.0f} held out | {args.epochs} epochs | {after['accuracy']:.3f} | {interval} | {losses} |",
    ]
    print("\n".join(lines))
    if by_heart < 0.95:
        raise SystemExit(f"only {by_heart:.3f} of the {FEW} pairs were learned by heart, at least 0.95 were expected")
    if args.write:
        write_section("align", lines)


if __name__ == "__main__":
    main()
