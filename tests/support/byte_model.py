"""A small model of bytes, trained on the source of Python's standard library for a minute or less."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qwen_megatron.evaluation.perplexity import Ids
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups
from tests.support.trainables import tiny_config

CONTEXT = 128
HELD_OUT = 200_000
VOCABULARY = 128


def source_bytes() -> tuple[torch.Tensor, Ids]:
    """Bytes of the standard library to train on, and others held out; what is not ASCII is one id."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:120]
    whole = np.frombuffer(b"\n".join(file.read_bytes() for file in files), dtype=np.uint8).astype(np.int64)
    ids = np.minimum(whole, VOCABULARY - 1)
    return torch.from_numpy(ids[:-HELD_OUT]), ids[-HELD_OUT:]


def trained_model(
    groups: Groups,
    steps: int,
    rows: int,
    lr: float,
    told: Callable[[int], None] = lambda step: None,
    *,
    context: int = CONTEXT,
    rotary_base: float = 200.0,
    ffn_hidden_size: int = 176,
) -> QwenModel:
    """A model of two layers that has seen nothing beyond `context` tokens, in evaluation mode.

    Args:
        groups: Of one rank.
        steps: Optimizer steps, warmed up over 20 and falling to 0.
        rows: Samples a step.
        lr: The highest.
        told: Called with each step.
        context: Tokens of a sample.
        rotary_base: By default wavelengths beyond the context are those of three of eight pairs of channels; at 7B of
            23 of 64.
        ffn_hidden_size: Channels of the feed-forward layers.
    """
    config = replace(
        tiny_config().model,
        num_layers=2,
        vocab_size=VOCABULARY,
        seq_length=context,
        rotary_base=rotary_base,
        ffn_hidden_size=ffn_hidden_size,
    )
    built = build_model(config, groups, precision="fp32", seed=1)
    optimizer = torch.optim.AdamW(built.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.95))
    train, _ = source_bytes()
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / steps)
        starts = torch.randint(0, len(train) - context, (rows,), generator=generator)
        batch = torch.stack([train[start : start + context + 1] for start in starts])
        logits_bsv = built(batch[:, :-1], None)
        loss = torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told(step)
    return unwrapped(built).eval()
