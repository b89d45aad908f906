"""A training step on one GPU beside transformers and the floor: `make bench-gpu`; with `--tiny` it runs on a CPU.

Contestants of one size take turns, several rounds, each built anew in this process and given up again, so that a slow
spell meets them alike and each has the memory for itself. The floor is what no implementation can leave out: the matrix
products of forward and backward pass, and attention. transformers trains pure bf16 weights, which is less work than our
fp32 masters.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from results import machine_line, write_section

from qwen_megatron.config.arithmetic.flops import training_flops_per_token
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.platforms import Platform, get_platform

# Dense bf16, TFLOP/s, from NVIDIA's data sheets.
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
GIB = 1 << 30
WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and a batch.

    Attributes:
        settings: Overrides of the configuration.
        micro_batch: Sequences at a time.
        global_batch: Sequences a step.
        sequence: Tokens of a sequence.
    """

    settings: tuple[str, ...]
    micro_batch: int
    global_batch: int
    sequence: int = 2048


SIZES = {
    "1.8B": Size(settings=("model.preset=qwen-1.8b",), micro_batch=8, global_batch=16),
    "7B, 8 layers": Size(settings=("model.preset=qwen-7b", "model.num_layers=8"), micro_batch=4, global_batch=16),
}
TINY = {
    "tiny": Size(
        settings=("model.preset=tiny", "model.vocab_size=307", "model.num_layers=2"),
        micro_batch=2,
        global_batch=4,
        sequence=32,
    )
}
CONTESTANTS = ("ours", "transformers eager", "transformers compiled", "floor")


def resolved(size: Size, device: torch.device) -> ResolvedConfig:
    """The configuration of a size in bf16 on a device."""
    settings = (
        f"training.seq_length={size.sequence}",
        f"training.micro_batch_size={size.micro_batch}",
        f"training.global_batch_size={size.global_batch}",
        "training.precision=bf16",
        "training.train_iters=1000",
        "optimizer.lr_warmup_iters=0",
        f"parallel.platform={device.type}",
    )
    return resolve(load_config(None, [*size.settings, *settings]), 1)


def random_tokens(config: ResolvedConfig) -> torch.Tensor:
    """[b, s + 1] int64, the same for all."""
    shape = (config.training.micro_batch_size, config.training.seq_length + 1)
    return torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def ours(config: ResolvedConfig, platform: Platform) -> Iterator[Callable[[], float]]:
    """Our engine, through the step of a real run."""
    from qwen_megatron.data.batch import make_batch
    from qwen_megatron.data.pretraining.dataset import SampleId
    from qwen_megatron.data.protocol import BatchShape
    from qwen_megatron.parallel.groups import build_groups, destroy_groups, start_process_group
    from qwen_megatron.train.objective import NextTokenLoss
    from qwen_megatron.train.step import train_step
    from qwen_megatron.train.trainable import build_trainable

    training = config.training
    platform.prepare()
    groups = build_groups(device=start_process_group(platform, 300), timeout_seconds=300)
    try:
        trainable = build_trainable(config, groups, platform)
        ids = [SampleId(corpus=0, sample=i, epoch=0) for i in range(training.micro_batch_size)]
        rows = list(random_tokens(config).numpy())

        def batches() -> Iterator[Any]:
            while True:
                yield make_batch(rows, ids, training.seq_length, config.model.vocab_size - 1)

        endless = batches()
        yield (
            lambda: (
                train_step(
                    trainable,
                    NextTokenLoss(),
                    endless,
                    shape=BatchShape(micro_batch_size=training.micro_batch_size, seq_length=training.seq_length),
                    num_microbatches=config.num_microbatches,
                    step=1,
                    learning_rate=1e-4,
                    clip_grad=1.0,
                ).loss
            )
        )
    finally:
        destroy_groups()


@contextmanager
def transformers_model(config: ResolvedConfig, device: torch.device, compiled: bool) -> Iterator[Callable[[], float]]:
    """Qwen2ForCausalLM in pure bf16 as its documentation trains it: SDPA, torch's fused AdamW, clipping."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model, count = config.model, config.num_microbatches
    torch.manual_seed(1)
    with torch.device(device):
        net: Any = Qwen2ForCausalLM(
            Qwen2Config(
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_layers,
                intermediate_size=model.ffn_hidden_size,
                num_attention_heads=model.num_attention_heads,
                num_key_value_heads=model.num_query_groups,
                vocab_size=model.vocab_size,
                max_position_embeddings=config.training.seq_length,
                tie_word_embeddings=False,
                use_cache=False,
                attn_implementation="sdpa",
                dtype=torch.bfloat16,
            )
        ).to(torch.bfloat16)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    run = torch.compile(net) if compiled else net
    tokens = random_tokens(config).to(device)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for _ in range(count):
            loss = run(input_ids=inputs, labels=inputs, shift_labels=labels).loss / count
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return total.item()

    yield step


@contextmanager
def floor(config: ResolvedConfig, device: torch.device) -> Iterator[Callable[[], float]]:
    """The products and the attention of a step, on tensors that stay where they are."""
    model, training = config.model, config.training
    rows, length, width = training.micro_batch_size, training.seq_length, model.hidden_size
    head, heads, groups = model.kv_channels, model.num_attention_heads, model.num_query_groups
    # Outputs and inputs of each product of a layer, and of the output layer.
    layer = [((heads + 2 * groups) * head, width), (width, heads * head)]
    layer += [(2 * model.ffn_hidden_size, width), (width, model.ffn_hidden_size)]

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    weights = {shape: tensor(*shape) for shape in [*layer, (model.vocab_size, width)]}
    ins = {size: tensor(rows * length, size) for size in {shape[1] for shape in weights}}
    outs = {size: tensor(rows * length, size) for size in {shape[0] for shape in weights}}
    query, key, value = (tensor(rows, n, length, head).requires_grad_() for n in (heads, groups, groups))
    upstream = tensor(rows, heads, length, head)

    def products(shape: tuple[int, int]) -> None:
        given, came, weight = ins[shape[1]], outs[shape[0]], weights[shape]
        torch.mm(given, weight.t())
        torch.mm(came, weight)
        torch.mm(came.t(), given)

    def step() -> float:
        for _ in range(config.num_microbatches):
            for _ in range(model.num_layers):
                for shape in layer:
                    products(shape)
                output = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, is_causal=True, enable_gqa=groups != heads
                )
                torch.autograd.grad(output, (query, key, value), upstream)
            products((model.vocab_size, width))
        return 0.0

    yield step


def contestant(name: str, config: ResolvedConfig, platform: Platform, device: torch.device) -> Any:
    """The context of a contestant's step."""
    if name == "ours":
        return ours(config, platform)
    if name == "floor":
        return floor(config, device)
    return transformers_model(config, device, compiled=name.endswith("compiled"))


def measure(name: str, config: ResolvedConfig, platform: Platform, device: torch.device, steps: int) -> dict[str, Any]:
    """Builds a contestant, warms it up, and times its steps."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    with contestant(name, config, platform, device) as step:
        for _ in range(WARM_UP):
            loss = step()
        for _ in range(steps):
            platform.synchronize()
            start = time.perf_counter()
            loss = step()
            platform.synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        busy, launches = profiled(step, platform) if device.type == "cuda" else (0.0, 0)
    return {"seconds": seconds, "loss": loss, "peak_bytes": peak, "busy_seconds": busy, "launches": launches}


def profiled(step: Callable[[], float], platform: Platform) -> tuple[float, int]:
    """Seconds that the GPU works in a step, and launches."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        platform.synchronize()
    events = seen.key_averages()
    launches = sum(event.count for event in events if event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    return sum(event.self_device_time_total for event in events) / 1e6, launches


def peak_tflops(device: torch.device) -> float | None:
    """Of the GPU by its name; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for kind, peak in PEAKS.items() if kind in name), None)


def table(
    title: str, config: ResolvedConfig, blocks: dict[str, list[dict[str, Any]]], device: torch.device
) -> list[str]:
    """The results of one size; ratios are medians over rounds of ratios within a round."""
    training = config.training
    work = training.global_batch_size * training.seq_length
    flops = work * training_flops_per_token(config.model, training.seq_length)
    peak = peak_tflops(device)
    lines = [
        f"**{title}**, {training.micro_batch_size} x {training.global_batch_size} sequences of {training.seq_length}",
        "",
        "| | s/step | TFLOP/s | MFU | GiB | GPU busy | launches | ours faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    medians = {name: [statistics.median(block["seconds"]) for block in several] for name, several in blocks.items()}
    for name, several in blocks.items():
        seconds = statistics.median(medians[name])
        rate = flops / seconds / 1e12
        last = several[-1]
        ratios = [theirs / mine for theirs, mine in zip(medians[name], medians.get("ours", []), strict=False)]
        cells = [
            name,
            f"{seconds:.3f}",
            f"{rate:.3g}",
            f"{100 * rate / peak:.1f} %" if peak else "",
            f"{last['peak_bytes'] / GIB:.1f}" if last["peak_bytes"] else "",
            f"{100 * last['busy_seconds'] / seconds:.0f} %" if last["busy_seconds"] else "",
            f"{last['launches']}" if last["launches"] else "",
            f"{statistics.median(ratios):.2f} x" if ratios else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="a size of milliseconds on the CPU, to try the benchmark")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of alternating contestants")
    parser.add_argument("--steps", type=int, default=6, help="steps of a contestant in a round, after three to warm up")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, default=CONTESTANTS, help="contestants")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of ours, training.fp8=... say"
    )
    parser.add_argument("--json", type=Path, help="write the raw times here")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args(arguments)
    platform = get_platform("cpu" if options.tiny else "cuda")
    device = platform.device(0)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [f"{where}; {machine_line(psutil.cpu_percent(interval=0.5))}", ""]
    raw: dict[str, Any] = {}
    for title, size in (TINY if options.tiny else SIZES).items():
        config = resolved(Size(**{**vars(size), "settings": (*size.settings, *options.set)}), device)
        blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
        for _ in range(options.rounds):
            for name, several in blocks.items():
                several.append(measure(name, config, platform, device, options.steps))
        raw[title] = blocks
        found = table(title, config, blocks, device)
        print("\n".join([*lines, *found] if title == next(iter(raw)) else found), flush=True)
        lines += found
    if options.json is not None:
        options.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    if options.write:
        write_section("bench-gpu", [f"## Training step on {where} (`make bench-gpu`)", "", *lines])


if __name__ == "__main__":
    main()
