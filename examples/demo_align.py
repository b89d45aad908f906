"""From the pretrained model of `make demo` to an aligned one.

Dialogues and preference pairs are made of the running Python's own documentation. Supervised fine-tuning -> reward
model -> PPO -> Hugging Face -> one turn of chat, on two processes, in several layouts. Every step is a command that you
can type yourself; this script only times them, and says what each improved on text that nobody trained on.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from stages import ROOT, MemoryMeter, Stage, run, times

ALIGN = ROOT / "demo" / "align"
PRETRAINED = ROOT / "demo" / "run" / "iter_0000080"
QUESTION = "What does os.path.join do?"
CORPORA = {"dialogues": "dialogues", "pairs": "pairs", "prompts": "prompts"}
SFT, REWARD, PPO = "demo/align/sft", "demo/align/reward", "demo/align/ppo"
NEXT = """Next, after `source .venv/bin/activate`:
  how PPO went             qwen-megatron report demo/align/ppo    (a page to open in a browser)
  what it answered         demo/align/ppo/samples.jsonl
  what was learned         qwen-data inspect demo/align/dialogues --document 0
  talk to it               qwen-megatron chat demo/align/hf
  your own dialogues       qwen-data chat YOUR.jsonl --output runs/mine/dialogues; then docs/alignment.md"""


def main() -> None:
    console = Console()
    if not PRETRAINED.is_dir():
        console.print(f"[red]{PRETRAINED.relative_to(ROOT)} is not there; run `make demo` first")
        sys.exit(1)
    memory = MemoryMeter()
    memory.start()
    shutil.rmtree(ALIGN, ignore_errors=True)
    launch = ("qwen-megatron", "launch")
    stages = [run(console, "collect documentation", "qwen-data", "collect-docs", "--output", "demo/align/text")]
    stages += [corpus(console, f"{name}{part}", kind) for name, kind in CORPORA.items() for part in ("", "-held-out")]
    stages += [
        run(console, "fine-tune", *launch, "sft", "examples/demo-sft.yaml"),
        run(console, "reward model", *launch, "reward", "examples/demo-reward.yaml"),
        run(console, "PPO", *launch, "ppo", "examples/demo-ppo.yaml"),
        run(console, "export", "qwen-megatron", "convert", "to-hf", newest(PPO), "demo/align/hf", "--format", "qwen2"),
        run(console, "chat", "qwen-megatron", "chat", "demo/align/hf", "--max-new-tokens", "48", typed=f"{QUESTION}\n"),
    ]
    summarize(console, stages, memory.peak_bytes)


def corpus(console: Console, name: str, kind: str) -> Stage:
    """Tokenizes one file of dialogues, pairs or prompts."""
    source, output = f"demo/align/text/{name}.jsonl", f"demo/align/{name}"
    return run(console, name, "qwen-data", "chat", source, "--kind", kind, "--output", output)


def newest(directory: str) -> str:
    """The last checkpoint of a run."""
    return f"{directory}/{(ROOT / directory / 'latest').read_text().strip()}"


def evaluations(directory: str) -> Sequence[dict[str, Any]]:
    """Rows of a run's evaluations on held-out data, in their order."""
    rows = [json.loads(line) for line in (ROOT / directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval_loss" in row]


def summarize(console: Console, stages: list[Stage], peak_bytes: int) -> None:
    """Prints the table and writes summary.json; exits with 1 if a part did not improve its measure."""
    tuned, preferred, improved = evaluations(SFT), evaluations(REWARD), evaluations(PPO)
    summary = {
        "sft_loss_before": tuned[0]["eval_loss"],
        "sft_loss_after": tuned[-1]["eval_loss"],
        "reward_accuracy": preferred[-1]["accuracy"],
        "reward_accuracy_low": preferred[-1]["accuracy_low"],
        "reward_accuracy_high": preferred[-1]["accuracy_high"],
        "reward_pairs": round(preferred[-1]["pairs"]),
        "ppo_reward_before": improved[0]["reward"],
        "ppo_reward_after": improved[-1]["reward"],
        "ppo_reward_error": improved[-1]["reward_error"],
        "seconds": sum(stage.seconds for stage in stages),
    }
    (ALIGN / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    table = Table(title="qwen-megatron alignment demo, on held-out documentation", show_header=False)
    for name, value in (
        ("fine-tuning", f"loss {summary['sft_loss_before']:.2f} -> {summary['sft_loss_after']:.2f} nats a token"),
        (
            "reward model",
            "prefers the right answer in {reward_accuracy:.1%} of {reward_pairs} pairs ({reward_accuracy_low:.1%} to "
            "{reward_accuracy_high:.1%})".format(**summary),
        ),
        (
            "PPO",
            "reward {ppo_reward_before:.3f} -> {ppo_reward_after:.3f} (standard error {ppo_reward_error:.3f})".format(
                **summary
            ),
        ),
        ("question", QUESTION),
        ("answer", repr(stages[-1].output.strip())),
        ("peak memory", f"{peak_bytes / 2**30:.1f} GiB over all processes"),
        ("time", times(stages)),
        ("model", "demo/align/hf; figures in demo/align/summary.json"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(NEXT, highlight=False)
    if not (
        summary["sft_loss_after"] < summary["sft_loss_before"]
        and summary["reward_accuracy_low"] > 0.5
        and summary["ppo_reward_after"] > summary["ppo_reward_before"] + 2 * summary["ppo_reward_error"]
    ):
        console.print("[red]expected each part to improve its measure on held-out data")
        sys.exit(1)


if __name__ == "__main__":
    main()
