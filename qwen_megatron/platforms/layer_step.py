"""A whole layer for one new token of each of a few texts, on the CPU: one call instead of some sixty operations.

A token of one text reads every weight once, which takes a layer of 13 million numbers half a millisecond. Starting as
many operations as a layer has takes as long again. The threads stay together from the first norm to the last sum.

Legend: b rows, h hidden, n heads, g key/value heads, d head size, f feed-forward channels, c room for tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwen_megatron import _kernels
from qwen_megatron.platforms.activations import takes
from qwen_megatron.platforms.few_rows import MOST_ROWS


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """Weights of a layer, all contiguous and of one dtype.

    Attributes:
        input_norm, mlp_norm: [h].
        qkv: [g * (n / g + 2) * d, h]: of each group the queries, the key, the value.
        qkv_bias: Of as many; None for none.
        query_norm, key_norm: [d]; None where heads are not normalised.
        projection: [h, n * d].
        gates_and_values: [2 * f, h].
        output: [h, f].
        eps: Of all norms.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    projection: torch.Tensor
    mlp_norm: torch.Tensor
    gates_and_values: torch.Tensor
    output: torch.Tensor
    eps: float

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """In the order of the kernel."""
        return [
            self.input_norm,
            self.qkv,
            self.qkv_bias,
            self.query_norm,
            self.key_norm,
            self.projection,
            self.mlp_norm,
            self.gates_and_values,
            self.output,
        ]


def takes_step(hidden_bh: torch.Tensor, weights: LayerWeights) -> bool:
    """Whether `layer_step` is for these tensors: few rows, and otherwise as `activations.takes` says."""
    given = [tensor for tensor in weights.tensors if tensor is not None]
    return (
        hidden_bh.numel() <= MOST_ROWS * weights.input_norm.numel()
        and takes(hidden_bh, *given)
        and all(tensor.is_contiguous() for tensor in given)
    )


def layer_step(
    hidden_bh: torch.Tensor,
    weights: LayerWeights,
    cos_bd: torch.Tensor,
    sin_bd: torch.Tensor,
    keys_bgcd: torch.Tensor,
    values_bgcd: torch.Tensor,
    offsets: Sequence[int],
    *,
    query_scale_b: torch.Tensor | None = None,
    window: int = 0,
    scale: float | None = None,
) -> torch.Tensor:
    """The layer's output; keys and values of the new tokens are written into the cache, each at its row's offset.

    Products and sums are in fp32 and rounded where the single operations round.

    Args:
        hidden_bh: [b, h], as `takes_step` says.
        weights: Of the layer.
        cos_bd, sin_bd: fp32 [1, d] or [b, d], of the angles of the new tokens.
        keys_bgcd, values_bgcd: [b, g, c, d] with the strides of a part of a contiguous tensor.
        offsets: Tokens of each row before the new one; below c.
        query_scale_b: fp32 [1] or [b], factors of the queries; None for 1.
        window: Tokens that the new one sees, itself included; 0 for all.
        scale: Of the scores; 1 / sqrt(d) for None.
    Returns:
        [b, h].
    """
    rows, hidden = hidden_bh.shape
    groups, room, size = keys_bgcd.shape[1:]
    ffn = weights.output.size(1)
    heads = weights.projection.size(1) // size
    if len(offsets) != rows or not all(0 <= offset < room for offset in offsets):
        raise ValueError(f"offsets={tuple(offsets)}: {rows} from 0 to {room - 1} are needed")
    if keys_bgcd.stride() != values_bgcd.stride() or keys_bgcd.stride()[2:] != (size, 1):
        raise ValueError("keys and values must lie alike, tokens of a head one after the other")
    hidden_bh, cos_bd, sin_bd = hidden_bh.contiguous(), cos_bd.contiguous(), sin_bd.contiguous()
    if query_scale_b is not None:
        # Rounded as a tensor of the queries' dtype; one for each row.
        query_scale_b = query_scale_b.to(hidden_bh.dtype).float().expand(rows).contiguous()
    output = torch.empty_like(hidden_bh)
    _kernels.layer_step(
        hidden_bh.dtype == torch.bfloat16,
        (rows, hidden, ffn, groups, heads // groups, size),
        [0 if tensor is None else tensor.data_ptr() for tensor in weights.tensors],
        weights.eps,
        size**-0.5 if scale is None else scale,
        window,
        (cos_bd.data_ptr(), sin_bd.data_ptr(), 0 if query_scale_b is None else query_scale_b.data_ptr()),
        size if cos_bd.size(0) > 1 else 0,
        (keys_bgcd.data_ptr(), values_bgcd.data_ptr()),
        keys_bgcd.stride()[:2],
        offsets,
        hidden_bh.data_ptr(),
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output
