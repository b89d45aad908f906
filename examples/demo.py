"""The main job on real text in about five minutes: `make demo`.

Text of the running Python's standard library -> Qwen's tokenizer -> pretraining on TP2 x PP2 x DP2 -> resume -> Hugging
Face -> equal logits -> generation. Every step is a command that you can type yourself; this script only times them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys

from rich.console import Console
from rich.table import Table
from stages import ROOT, MemoryMeter, Stage, run, times

DEMO = ROOT / "demo"
PROMPT = "def main("
LOGIT_TOLERANCE = 1e-4
NEXT = """Next, after `source .venv/bin/activate`:
  how training went        qwen-megatron report demo/run      (a page to open in a browser)
  from which text          qwen-megatron trace demo/run --step 40
  twenty more steps        qwen-megatron launch examples/demo.yaml training.train_iters=100 optimizer.lr_decay_iters=80
  your own text            qwen-data tokenize YOUR.jsonl --output runs/mine/corpus; then README.md, quick tour
  the released sizes       qwen-megatron recipes"""


def main() -> None:
    console = Console()
    memory = MemoryMeter()
    memory.start()
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    pretrain = ("qwen-megatron", "launch", "examples/demo.yaml")
    checkpoint = "demo/run/iter_0000080"
    stages = [
        run(console, "collect text", "qwen-data", "collect-stdlib", "--output", "demo/stdlib.jsonl"),
        run(console, "tokenize", "qwen-data", "tokenize", "demo/stdlib.jsonl", "--output", "demo/corpus"),
        run(console, "pretrain to step 40", *pretrain, "training.exit_iter=40"),
        run(console, "resume to step 80", *pretrain),
        run(console, "export", "qwen-megatron", "convert", "to-hf", checkpoint, "demo/hf", "--format", "qwen2"),
        run(console, "verify", "qwen-megatron", "convert", "verify", checkpoint, "demo/hf"),
        run(console, "generate", "qwen-megatron", "generate", checkpoint, "--prompt", PROMPT, "--max-new-tokens", "24"),
    ]
    summarize(console, stages, memory.peak_bytes)


def summarize(console: Console, stages: list[Stage], peak_bytes: int) -> None:
    """Prints the table that `make demo` ends with; exits with 1 if the demo did not show what it claims."""
    corpus = json.loads((DEMO / "corpus.json").read_text())
    rows = [json.loads(line) for line in (DEMO / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    steps = [row for row in rows if "loss" in row]
    first, last = losses[min(losses)], losses[max(losses)]
    difference = float(re.findall(r"largest difference (\S+),", stages[5].output)[-1])
    table = Table(title="qwen-megatron demo", show_header=False)
    for name, value in (
        ("corpus", f"{corpus['num_tokens']:,} tokens in {corpus['num_documents']} documents"),
        ("training", f"{len(steps)} steps on 8 processes, TP2 x PP2 x DP2, stopped and resumed at step 40"),
        ("held-out loss", f"{first:.2f} -> {last:.2f} nats per token"),
        ("speed", f"{sorted(row['tokens_per_second'] for row in steps)[len(steps) // 2]:,.0f} tokens/s (median)"),
        ("greedy", repr(stages[6].output.rstrip("\n"))),
        ("logits", f"ours and transformers' differ by {difference:.1e} at most"),
        ("peak memory", f"{peak_bytes / 2**30:.1f} GiB over all processes"),
        ("time", times(stages)),
        ("model", "demo/hf: load it with transformers.AutoModelForCausalLM.from_pretrained"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(NEXT, highlight=False)
    if last >= 8 or difference > LOGIT_TOLERANCE:
        console.print(f"[red]expected a held-out loss below 8 and logits within {LOGIT_TOLERANCE}")
        sys.exit(1)


if __name__ == "__main__":
    main()
