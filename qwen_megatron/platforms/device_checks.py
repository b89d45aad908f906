"""Checks of what stands on a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import torch


def require(condition: torch.Tensor, message: Callable[[], str]) -> None:
    """Refuses to go on unless a scalar is true.

    On a GPU the host does not wait for the answer: the device stops, and the next call that waits for it raises. What
    fails there fails on the CPU with the whole message.

    Args:
        condition: Scalar bool.
        message: Says what is wrong, with the numbers.
    Raises:
        RuntimeError: with the message, on the CPU.
    """
    if not condition.is_cpu:
        torch._assert_async(condition, "a check of the training step failed; the CPU platform says which and why")
    elif not condition:
        raise RuntimeError(message())
