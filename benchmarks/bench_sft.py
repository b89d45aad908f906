"""Tokens a second of supervised fine-tuning with packing against TRL's SFTTrainer: same dialogues, same model size.

    python benchmarks/bench_sft.py --trl FOLDER --write

Needs trl (1.16) with accelerate and datasets: in this environment, or in a folder, by `pip install --no-deps
--target FOLDER trl`. Both train in fp32 on one thread, on rows of `LENGTH` tokens packed best or first fit decreasing,
dialogues apart from each other; blocks of steps alternate, each in a process of its own. Tokens are those of dialogues:
padding does not count. Ratios are medians over rounds of ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from results import machine_line, write_section

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_tools.chat.rendered import Rendered  # noqa: E402

VOCABULARY, HIDDEN, WIDTH, LAYERS, HEADS = 16_000, 128, 352, 4, 4
LENGTH, ROWS, COUNT = 512, 4, 400
WARM, TIMED = 2, 4


def dialogues() -> list[Rendered]:
    """Random tokens of 32 to 511; the second half of each is learned."""
    generator = np.random.default_rng(0)
    return [
        Rendered(
            tokens=generator.integers(3, VOCABULARY, size=length).astype(np.int32),
            targets=np.arange(length) > length // 2,
        )
        for length in generator.integers(32, LENGTH, size=COUNT)
    ]


def ours() -> tuple[float, int]:
    """Seconds and tokens of the timed steps of `qwen-megatron sft`."""
    from data_tools.chat.chat_writer import write_chat_corpus
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.jobs.sft import sft
    from qwen_megatron.train.hooks.callback import CallbackHook
    from qwen_megatron.train.run import StepRecord

    seconds: list[float] = []

    def told(record: StepRecord) -> None:
        seconds.append(record.step_seconds)

    with tempfile.TemporaryDirectory() as folder:
        write_chat_corpus(f"{folder}/dialogues", dialogues(), kind="dialogues")
        settings = {
            "parallel.platform": "cpu",
            "parallel.threads": 1,
            "model.num_layers": LAYERS,
            "model.hidden_size": HIDDEN,
            "model.ffn_hidden_size": WIDTH,
            "model.num_attention_heads": HEADS,
            "model.vocab_size": VOCABULARY,
            "model.seq_length": LENGTH,
            "training.precision": "fp32",
            "training.seq_length": LENGTH,
            "training.micro_batch_size": ROWS,
            "training.global_batch_size": ROWS,
            "training.train_iters": WARM + TIMED,
            "logging.tensorboard": "false",
            "data.blend": f"[{folder}/dialogues]",
            "checkpoint.directory": f"{folder}/run",
        }
        config = resolve(load_config(None, [f"{key}={value}" for key, value in settings.items()]))
        from qwen_megatron.jobs.dialogues import open_packed

        packed = open_packed(config)
        tokens = sum(
            int(packed.corpora[0].lengths[document]) - 1
            for number in range(WARM * ROWS, (WARM + TIMED) * ROWS)
            for document in packed.documents_of(packed.train_id(number))
        )
        sft(config, [CallbackHook(told)])
    return sum(seconds[WARM:]), tokens


def theirs() -> tuple[float, int]:
    """Seconds and tokens of the timed steps of TRL's SFTTrainer."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    words = models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="1", pad_token="2", unk_token="0")
    data = Dataset.from_dict(
        {
            "input_ids": [dialogue.tokens.tolist() for dialogue in dialogues()],
            "completion_mask": [dialogue.targets.astype(int).tolist() for dialogue in dialogues()],
        }
    )
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
        )
    )
    times: list[float] = []
    tokens: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *arguments: object, **named: object) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *arguments: object, **named: object) -> None:
            times[-1] += time.perf_counter()

        def on_log(self, *arguments: object, logs: dict[str, float], **named: object) -> None:
            if "num_tokens" in logs:
                tokens.append(float(logs["num_tokens"]))

    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(
            output_dir=folder,
            max_length=LENGTH,
            packing=True,
            per_device_train_batch_size=ROWS,
            max_steps=WARM + TIMED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            completion_only_loss=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        SFTTrainer(
            model=model, args=options, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]
        ).train()
    return sum(times[WARM:]), round(tokens[WARM + TIMED - 1] - tokens[WARM - 1])


def block(kind: str, trl: Path | None) -> float:
    """Tokens a second of one block of steps, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *([str(trl)] if trl is not None else []), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-W", "ignore", __file__, "--worker", kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    seconds, tokens = json.loads(done.stdout.splitlines()[-1])
    return float(tokens / seconds)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trl", type=Path, help="a folder that holds the package trl; default: it is installed")
    parser.add_argument("--rounds", type=int, default=5, help="of one block each (5)")
    parser.add_argument("--write", action="store_true", help="replace the section in docs/benchmarks.md")
    parser.add_argument("--worker", choices=("ours", "trl"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.worker is not None:
        print("\n" + json.dumps(ours() if args.worker == "ours" else theirs()))
        return
    busy = psutil.cpu_percent(interval=1.0)
    speeds: dict[str, list[float]] = {"ours": [], "trl": []}
    for _ in range(args.rounds):
        for kind, found in speeds.items():
            found.append(block(kind, args.trl))
            print(f"{kind}: {found[-1]:,.0f} tokens/s", flush=True)
    ratios = [mine / other for mine, other in zip(speeds["ours"], speeds["trl"], strict=True)]
    model = f"{LAYERS} layers, hidden {HIDDEN}, vocabulary {VOCABULARY:,}, fp32, one thread"
    steps = f"{ROWS} rows of {LENGTH} tokens a step; {args.rounds} rounds of {TIMED} timed steps"
    lines = [
        "## Supervised fine-tuning with packing",
        "",
        machine_line(busy),
        f"{model}; {steps}.",
        "",
        "| | tokens/s |",
        "|---|---|",
        f"| ours | {statistics.median(speeds['ours']):,.0f} |",
        f"| TRL's SFTTrainer | {statistics.median(speeds['trl']):,.0f} |",
        f"| ratio | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
    ]
    print("\n".join(lines))
    if args.write:
        write_section("sft", lines)


if __name__ == "__main__":
    main()
