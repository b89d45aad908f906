"""Megatron-Core's parallel linears, and what stands between two of them, with ways of their own in inference."""

from __future__ import annotations

from typing import Any, cast

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule

from qwen_megatron.platforms import activations
from qwen_megatron.platforms.few_rows import few_rows_linear
from qwen_megatron.platforms.many_rows import many_rows_linear


class InferenceProduct:
    """Takes over the product itself in inference; what goes before and after it between ranks stays Megatron-Core's.

    On one rank nothing does, and the product is all there is.
    """

    def product_alone(
        self, input_: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Output, and the bias where it is left to others; None where there is more to do than the product."""
        if not torch.is_inference_mode_enabled() or self.tp_group.size() > 1:  # type: ignore[attr-defined]
            return None
        bias = self.bias  # type: ignore[attr-defined]
        if self.skip_bias_add:  # type: ignore[attr-defined]
            return self._forward_impl(input_, weight), bias
        return self._forward_impl(input_, weight, bias), None

    def _forward_impl(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, **others: Any
    ) -> torch.Tensor:
        # Under sequence parallelism the input is gathered within the product.
        if others.get("sequence_parallel"):
            return cast(torch.Tensor, super()._forward_impl(input, weight, bias=bias, **others))  # type: ignore[misc]
        output = few_rows_linear(input, weight, bias)
        if output is None and torch.is_inference_mode_enabled():
            # The bias joins the product, where Megatron-Core adds it in a pass of its own.
            output = many_rows_linear(input, weight, bias)
        if output is None:
            output = super()._forward_impl(input, weight, bias=bias, **others)  # type: ignore[misc]
        return cast(torch.Tensor, output)


class ColumnLinear(InferenceProduct, ColumnParallelLinear):
    """Each rank has some of the outputs."""

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As Megatron-Core's: [s, b, i] to [s, b, o / tp], and the bias where it is left to others."""
        alone = self.product_alone(input_, self.weight if weight is None else weight)
        return alone or super().forward(input_, weight, runtime_gather_output)


class RowLinear(InferenceProduct, RowParallelLinear):
    """Each rank has some of the inputs; the results are summed."""

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As Megatron-Core's: [s, b, i / tp] to [s, b, o], and the bias where it is left to others."""
        return self.product_alone(input_, self.weight) or super().forward(input_)


class SwiGlu(MegatronModule):
    """silu(gate) * value, as Megatron-Core's feed-forward layer takes it between its two linears.

    Megatron-Core's own on the CPU adds an offset of 0 to the values first, in a pass over all of them.
    """

    def forward(self, gates_and_values: torch.Tensor) -> torch.Tensor:
        """[s, b, 2 * f], gates before values, to [s, b, f]."""
        if activations.takes(gates_and_values):
            return activations.swiglu(gates_and_values)
        gates, values = gates_and_values.chunk(2, dim=-1)
        return torch.nn.functional.silu(gates) * values
