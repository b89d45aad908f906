"""What a comparison of two models looks at: bits of tensors, outputs of the steps of a forward pass.

Legend: b batch, s sequence, h hidden size, v vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

# What each step of a forward pass gave, in order: fp32 [b, s, h], for "logits" [b, s, v].
Activations = dict[str, torch.Tensor]


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equality that tells 0 from -0 and takes a NaN for itself."""
    integers = {2: torch.int16, 4: torch.int32}[left.dtype.itemsize]
    return torch.equal(left.contiguous().view(integers), right.contiguous().view(integers))


@contextlib.contextmanager
def recorded(
    modules: dict[str, torch.nn.Module], to_bsh: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[Activations]:
    """Keeps the outputs of modules while the block runs, in the order of `modules`.

    Args:
        modules: By the name of the step.
        to_bsh: Turns an output into [b, s, h].
    """
    activations: Activations = {}

    def keep(name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        # A copy: the residual sum may be written into the output.
        activations[name] = to_bsh(hidden).to("cpu", torch.float32, copy=True)

    handles = [module.register_forward_hook(functools.partial(keep, name)) for name, module in modules.items()]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def first_difference(ours: Activations, theirs: Activations, tolerance: float) -> str:
    """The first step whose outputs differ by more than `tolerance` of the largest value; "logits" if there is none."""
    for name, expected in theirs.items():
        difference, largest = (ours[name] - expected).abs().max(), expected.abs().max()
        if not difference <= tolerance * largest:
            return name
    return "logits"
