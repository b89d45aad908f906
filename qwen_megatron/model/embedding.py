"""Token embedding whose gradient touches only the rows that were looked up.

Legend: s sequence, b micro-batch, h hidden, v vocabulary rows.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

from qwen_megatron.model.main_grad import accumulated, accumulates
from qwen_megatron.platforms.rows import add_rows


class Embedding(VocabParallelEmbedding):
    """Megatron-Core's vocabulary-parallel embedding with a sparse gradient.

    A dense gradient of 152k rows, nearly all zero, would be made, cleared and added for every micro-batch; here the
    rows are added to `weight.main_grad` in fp32 (Megatron-Core's data-parallel wrapper). Without such a buffer, and for
    a weight tied to the output layer on the same rank, it is Megatron-Core's own lookup.
    """

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """[b, s] int64 to [b, s, h], or to [s / tp, b, h] under sequence parallelism."""
        if not (torch.is_grad_enabled() and accumulates(self.weight)):
            return super().forward(input_)
        embedded_bsh = Lookup.apply(self.weight, input_ - self.vocab_start_index)
        if self.reduce_scatter_embeddings:
            return reduce_scatter_to_sequence_parallel_region(
                embedded_bsh.transpose(0, 1).contiguous(), group=self.tp_group
            )
        return reduce_from_tensor_model_parallel_region(embedded_bsh, group=self.tp_group)


class Lookup(torch.autograd.Function):
    """Rows of a weight with `main_grad`; zeros for numbers that are not its rows."""

    @staticmethod
    def forward(ctx: Any, weight_vh: torch.Tensor, rows_bs: torch.Tensor) -> torch.Tensor:
        inside = (rows_bs >= 0) & (rows_bs < len(weight_vh))
        # Their zeros are spread over the rows: a GPU adds what belongs to one row one after the other.
        rows_bs = torch.where(inside, rows_bs, rows_bs % len(weight_vh))
        ctx.save_for_backward(rows_bs, inside)
        ctx.weight = weight_vh
        return torch.nn.functional.embedding(rows_bs, weight_vh) * inside[..., None]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        rows_bs, inside = ctx.saved_tensors
        main_grad = ctx.weight.main_grad
        grad = (grad_outputs[0] * inside[..., None]).to(main_grad.dtype)
        add_rows(main_grad, rows_bs.flatten(), grad.flatten(0, 1))
        return accumulated(ctx.weight), None
