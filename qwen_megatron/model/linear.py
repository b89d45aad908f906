"""Megatron-Core's parallel linears, with products of their own in inference."""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from qwen_megatron.platforms.few_rows import few_rows_linear


class InferenceProduct:
    """Takes over the product itself in inference; what goes before and after it between ranks stays Megatron-Core's."""

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **others: Any
    ) -> torch.Tensor:
        # Under sequence parallelism the input is gathered within the product.
        if others.get("sequence_parallel"):
            return cast(torch.Tensor, super()._forward_impl(input, weight, bias=bias, **others))  # type: ignore[misc]
        output = few_rows_linear(input, weight, bias)
        if output is None and torch.is_inference_mode_enabled():
            # The bias joins the product, where Megatron-Core adds it in a pass of its own.
            output = torch.nn.functional.linear(input, weight, bias)
        if output is None:
            output = super()._forward_impl(input, weight, bias=bias, **others)  # type: ignore[misc]
        return cast(torch.Tensor, output)


class ColumnLinear(InferenceProduct, ColumnParallelLinear):
    """Each rank has some of the outputs."""


class RowLinear(InferenceProduct, RowParallelLinear):
    """Each rank has some of the inputs; the results are summed."""
