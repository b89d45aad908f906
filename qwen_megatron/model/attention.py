"""Core attention: positions in Qwen's way around a kernel that knows none.

Legend: s sequence, b micro-batch, n heads on this rank, g key/value heads on this rank, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.rotary import RotarySettings, dynamic_ntk_base, logn_scale, rotary_table, rotate


class TorchAttention(torch.nn.Module):
    """Causal attention through torch's scaled_dot_product_attention: flash kernel on the CPU, no s x s tensor.

    Takes the arguments of Megatron-Core's core attention modules.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ):
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d].

        Raises:
            ValueError: if another mask than the causal one, a bias or packed sequences are given: the kernel would
                ignore them; if there are not as many keys as queries: it would line up the first ones.
        """
        for name, given in (("mask", attention_mask), ("bias", attention_bias), ("packing", packed_seq_params)):
            if given is not None:
                raise ValueError(f"causal attention was given an attention {name}, which it would ignore")
        if attn_mask_type is not None and attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"attention is causal here, but mask type {attn_mask_type.name} was asked for")
        queries, keys = query_sbnd.size(0), key_sbgd.size(0)
        if queries != keys:
            raise ValueError(f"causal attention takes one key a query, but got {queries} queries and {keys} keys")
        repeat = query_sbnd.size(2) // key_sbgd.size(2)
        if repeat > 1:
            key_sbgd = key_sbgd.repeat_interleave(repeat, dim=2)
            value_sbgd = value_sbgd.repeat_interleave(repeat, dim=2)
        context_bnsd = torch.nn.functional.scaled_dot_product_attention(
            query_sbnd.permute(1, 2, 0, 3),
            key_sbgd.permute(1, 2, 0, 3),
            value_sbgd.permute(1, 2, 0, 3),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            scale=self.softmax_scale,
        )
        return context_bnsd.permute(2, 0, 1, 3).flatten(start_dim=2)


class QwenCoreAttention(MegatronModule):
    """Rotary positions, dynamic NTK and LogN scaling, written once for every kernel.

    Megatron-Core's rotary code rounds cos and sin to the model's precision; Qwen rotates in fp32.

    Args:
        kernel: Core attention module without positions (`TorchAttention`, Transformer Engine's).
        rotary: Angles and stretching.
        others: As in Megatron-Core's core attention modules.
    """

    def __init__(self, config: TransformerConfig, *, kernel: type, rotary: RotarySettings, **others: Any):
        super().__init__(config=config)
        self.rotary = rotary
        self.kernel = kernel(config=config, **others)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d]; further arguments go to the kernel."""
        length = query.size(0)
        stretch = not self.training and length > self.rotary.native_length
        base = dynamic_ntk_base(self.rotary, length) if stretch and self.rotary.use_dynamic_ntk else self.rotary.base
        cos, sin = rotary_table(base, self.rotary.head_size, length, query.device)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if stretch and self.rotary.use_logn_attn:
            query = query * logn_scale(self.rotary, length, query.device).to(query.dtype)
        return self.kernel(query, key, value, *args, **kwargs)
