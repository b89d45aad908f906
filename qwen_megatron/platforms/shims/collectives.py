"""Collectives of the data-parallel wrapper that cost nothing in a group of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """`collective(output, input, ...)`, left out where output and input are the same memory.

    Megatron-Core gathers and scatters between a buffer and this rank's part of it. In a group of one that part is the
    whole buffer; gloo would copy it out and in again.
    """

    def call(output: torch.Tensor, source: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if output.data_ptr() == source.data_ptr() and output.numel() == source.numel():
            return None
        return collective(output, source, *args, **kwargs)

    return call
