"""Squares of gradients, summed as the machine does it exactly and fast."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# On the CPU squares are summed in fp64 in pieces of this many elements, which stay in the cache.
PIECE = 1 << 18


def sum_of_squares(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """fp64 scalar on the gradients' device.

    torch's fp32 norm is wrong by up to 1 % on large tensors of the CPU, where squares are summed in fp64. A GPU sums a
    tensor in many short parts, and takes the norms of many tensors in one launch.
    """
    gradients = [gradient.detach() for gradient in gradients]
    device = gradients[0].device if gradients else torch.device("cpu")
    if device.type != "cpu":
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        return torch.dot(norms, norms)
    total = torch.zeros((), dtype=torch.float64, device=device)
    buffer = torch.empty(PIECE, dtype=torch.float64, device=device)
    for gradient in gradients:
        for piece in gradient.flatten().split(PIECE):
            exact = buffer[: len(piece)].copy_(piece)
            total += torch.dot(exact, exact)
    return total
