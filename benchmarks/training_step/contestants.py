"""The contestants: builders of one training step each, and of the floor under all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

HIDDEN, LAYERS, FFN, HEADS, SEQUENCE, VOCAB = 512, 8, 1408, 8, 512, 151_936
SPEED_BATCH, MEMORY_BATCH = 2, 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a contestant does in one step.

    Attributes:
        kind: `ours`, `transformers` or `floor`.
        precision: `bf16` (ours: with fp32 masters), `fp32`; transformers also `autocast`.
        threads: Of each process.
        micro_batch: Sequences at a time on each replica.
        global_batch: Sequences a step.
        tensor_size: Processes that share the matrices; ours only.
        num_processes: Processes in all; ours only.
    """

    kind: str
    precision: str
    threads: int = 1
    micro_batch: int = SPEED_BATCH
    global_batch: int = SPEED_BATCH
    tensor_size: int = 1
    num_processes: int = 1


def build(work: Work) -> Callable[[], float]:
    """A function that takes one step and returns the loss."""
    if work.kind == "ours":
        return build_ours(work)
    return {"transformers": build_transformers, "floor": build_floor}[work.kind](work.precision, work.micro_batch)


def build_ours(work: Work) -> Callable[[], float]:
    """Our engine, through the configuration and the step of a real run."""
    from qwen_megatron.config.load import load_config
    from qwen_megatron.config.resolve import resolve
    from qwen_megatron.data.protocol import BatchShape
    from qwen_megatron.parallel.groups import build_groups, start_process_group
    from qwen_megatron.platforms import get_platform
    from qwen_megatron.train.objective import NextTokenLoss
    from qwen_megatron.train.step import train_step
    from qwen_megatron.train.trainable import build_trainable

    settings = {
        "model.num_layers": LAYERS,
        "model.hidden_size": HIDDEN,
        "model.ffn_hidden_size": FFN,
        "model.num_attention_heads": HEADS,
        "model.vocab_size": VOCAB,
        "model.seq_length": SEQUENCE,
        "training.seq_length": SEQUENCE,
        "training.micro_batch_size": work.micro_batch,
        "training.global_batch_size": work.global_batch,
        "training.precision": work.precision,
        "parallel.tensor_model_parallel_size": work.tensor_size,
        "training.seed": 1,
        "training.train_iters": 100,
        "optimizer.lr_warmup_iters": 0,
    }
    config = resolve(load_config(None, [f"{key}={value}" for key, value in settings.items()]), work.num_processes)
    machine = get_platform("cpu")
    machine.prepare()
    device = start_process_group(machine, 60)
    groups = build_groups(tensor_model_parallel_size=work.tensor_size, device=device, timeout_seconds=60)
    trainable = build_trainable(config, groups, machine)
    shape = BatchShape(micro_batch_size=work.micro_batch, seq_length=SEQUENCE)
    batches = our_batches(work.micro_batch)

    def step() -> float:
        return train_step(
            trainable,
            NextTokenLoss(),
            batches,
            shape=shape,
            num_microbatches=config.num_microbatches,
            step=1,
            learning_rate=1e-4,
            clip_grad=1.0,
        ).loss

    return step


def our_batches(batch: int) -> Iterator[Any]:
    """Endless micro-batches of the same random tokens that transformers gets."""
    from qwen_megatron.data.batch import make_batch
    from qwen_megatron.data.pretraining.dataset import SampleId

    ids = [SampleId(corpus=0, sample=i, epoch=0) for i in range(batch)]
    while True:
        yield make_batch(list(random_tokens(batch).numpy()), ids, SEQUENCE, VOCAB - 1)


def random_tokens(batch: int) -> Any:
    """[b, s + 1] int64, the same for all."""
    import torch

    return torch.randint(VOCAB, (batch, SEQUENCE + 1), generator=torch.Generator().manual_seed(0))


def build_transformers(precision: str, batch: int) -> Callable[[], float]:
    """Qwen2ForCausalLM as its documentation trains it: SDPA, torch's fused AdamW, clipping."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=VOCAB,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens = random_tokens(batch)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = model(input_ids=inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def build_floor(precision: str, batch: int) -> Callable[[], float]:
    """The unavoidable kernels of one step, on tensors that stay where they are."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens = batch * SEQUENCE

    def products(columns: int, rows: int) -> Callable[[], None]:
        """Forward, input gradient and weight gradient of a linear layer."""
        x, w, y = (torch.randn(shape).to(dtype) for shape in ((tokens, columns), (rows, columns), (tokens, rows)))
        out_y, out_x, out_w = torch.empty_like(y), torch.empty_like(x), torch.empty_like(w)

        def run() -> None:
            torch.mm(x, w.t(), out=out_y)
            torch.mm(y, w, out=out_x)
            torch.mm(y.t(), x, out=out_w)

        return run

    shapes = ((HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * FFN), (FFN, HIDDEN))
    layer = [products(*shape) for shape in shapes]
    head = products(HIDDEN, VOCAB)
    heads_shape = (batch, HEADS, SEQUENCE, HIDDEN // HEADS)
    query, key, value = (torch.randn(heads_shape).to(dtype).requires_grad_() for _ in range(3))
    logits = torch.randn(1, VOCAB)
    exponentials = torch.empty_like(logits)

    def step() -> float:
        for _ in range(LAYERS):
            for run in layer:
                run()
            context = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            torch.autograd.grad(context, (query, key, value), context.detach())
        head()
        for _ in range(tokens):
            torch.exp(logits, out=exponentials)
        return 0.0

    return step
