"""Gradients that layers add to Megatron-Core's fp32 buffer themselves, past autograd.

The data-parallel wrapper gives every weight a `main_grad`, to which its backward hook adds what autograd hands out. A
layer may add to it directly and mark the weight, by the protocol of Megatron-Core's fused gradient accumulation.
"""

from __future__ import annotations

import torch


def accumulates(weight: torch.Tensor) -> bool:
    """True if a layer may add this weight's gradient to its buffer.

    Not where another layer on this rank has a gradient for the same weight through autograd (tied embeddings): the hook
    must add that one, and the mark would have it dropped.
    """
    return weight.requires_grad and hasattr(weight, "main_grad") and not getattr(weight, "zero_out_wgrad", False)


def accumulated(weight: torch.Tensor) -> torch.Tensor:
    """Marks the weight and gives what autograd takes for its gradient; the hook drops it without looking at it."""
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    # Memory that is never touched is never given by the operating system.
    return torch.empty_like(weight)
