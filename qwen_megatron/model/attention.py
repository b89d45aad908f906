"""Core attention: positions in Qwen's way around a kernel that knows none.

Legend: s sequence, b micro-batch, n heads on this rank, g key/value heads on this rank, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.attention_context import AttentionContext, context_of
from qwen_megatron.model.rotary import RotarySettings, evaluation_base, logn_scale, rotary_table
from qwen_megatron.parallel.context import take_slices
from qwen_megatron.platforms.rotation import rotate


@dataclass(frozen=True, kw_only=True)
class Positions:
    """What the positions of queries and keys do to them.

    Attributes:
        cos, sin: fp32 [s, 1, 1, d], or [s, b, 1, d] where rows differ.
        query_scale: fp32 [s, 1, 1, 1] or [s, b, 1, 1], of LogN scaling; None where it is 1.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None


class QwenCoreAttention(MegatronModule):
    """Rotary positions, and the ways of reading beyond the native length, written once for every kernel.

    Megatron-Core's rotary code rounds cos and sin to the model's precision; Qwen rotates in fp32.

    Args:
        kernel: Makes the core attention module without positions (`TorchAttention`, `EngineAttention`).
        takes: What the kernel takes: of an `AttentionContext` `documents`, `dropout`, `cache`; and `windows`.
        rotary: Angles and stretching, as the model is configured.
        pg_collection: Groups; with context parallelism each rank holds two slices of every sequence.
        others: As in Megatron-Core's core attention modules.
    Attributes:
        evaluated: Angles and stretching at evaluation; as configured, if nobody sets others.
        window: Tokens that a token of this layer sees at evaluation, itself included; 0 for all up to itself.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        kernel: Callable[..., torch.nn.Module],
        takes: frozenset[str],
        rotary: RotarySettings,
        pg_collection: ProcessGroupCollection,
        **others: Any,
    ):
        super().__init__(config=config)
        self.rotary = rotary
        self.evaluated = rotary
        self.window = 0
        self.context_group = pg_collection.cp
        self.takes = takes
        self.layer_number: int = others["layer_number"]
        self.kernel = kernel(config=config, pg_collection=pg_collection, **others)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        packed_seq_params: AttentionContext | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d]; further arguments go to the kernel.

        Args:
            packed_seq_params: Context of the micro-batch; with a cache, the keys and values of the tokens before are
                taken from it and the new ones put into it, rotated.
        Raises:
            ValueError: if the kernel would ignore something in the context, or two parts of it do not go together.
        """
        context = context_of(packed_seq_params)
        positions = self.positions(context, query)
        query, key = rotate(query, positions.cos, positions.sin), rotate(key, positions.cos, positions.sin)
        if positions.query_scale is not None:
            query = query * positions.query_scale.to(query.dtype)
        if context.cache is not None:
            key, value = context.cache.extend(self.layer_number, key, value, context.offsets or (0,) * query.size(1))
        # A kernel that takes nothing of the context gets none.
        if self.takes:
            others["packed_seq_params"] = packed_seq_params
        if self.window and not self.training:
            others["window"] = self.window
        return self.kernel(query, key, value, attention_mask, **others)

    def positions(self, context: AttentionContext, tokens_sb: torch.Tensor) -> Positions:
        """Of the micro-batch's tokens on this rank.

        Args:
            context: Of the micro-batch.
            tokens_sb: [s, b, ...], anything that comes of them.
        Raises:
            ValueError: as `forward`.
        """
        context.refuse_beyond(self.takes, type(self.kernel).__name__)
        if context.cache is None and not context.text_lengths:
            return self.positions_of_whole(tokens_sb.size(0) * self.context_group.size(), tokens_sb.device)
        self.check_rows(context, tokens_sb.size(0))
        context.check(tokens_sb.size(1), tokens_sb.size(0))
        return context.once("positions", lambda: self.positions_of_rows(context, tokens_sb))

    def positions_of_whole(self, length: int, device: torch.device) -> Positions:
        """Of this rank's part of sequences that are run as a whole."""
        rotary = self.evaluated
        base = rotary.base if self.training else evaluation_base(rotary, length)
        cos, sin = (
            take_slices(table, 0, self.context_group) for table in rotary_table(base, rotary.head_size, length, device)
        )
        scale = None
        if not self.training and rotary.use_logn_attn and length > rotary.native_length:
            scale = take_slices(logn_scale(rotary, length, device), 0, self.context_group)
        return Positions(cos=cos, sin=sin, query_scale=scale)

    def positions_of_rows(self, context: AttentionContext, tokens_sb: torch.Tensor) -> Positions:
        """Of tokens that follow what is in a cache."""
        count, rows, device = tokens_sb.size(0), tokens_sb.size(1), tokens_sb.device
        offsets = context.offsets or (0,) * rows
        lengths = context.text_lengths or tuple(offset + count for offset in offsets)
        # Rows that have the same are computed once.
        kinds = sorted(set(zip(offsets, lengths, strict=True)))
        tables = {}
        for offset, length in kinds:
            base = evaluation_base(self.evaluated, length)
            cos, sin = rotary_table(base, self.evaluated.head_size, offset + count, device)
            tables[offset, length] = cos[offset:], sin[offset:]
        scale = None
        if self.evaluated.use_logn_attn and max(offsets) + count > self.evaluated.native_length:
            scales = {offset: logn_scale(self.evaluated, offset + count, device)[offset:] for offset in set(offsets)}
            scale = torch.cat([scales[offset] for offset in offsets], dim=1)
        if len(kinds) == 1:
            ((cos, sin),) = tables.values()
        else:
            cos, sin = (
                torch.cat([tables[kind][which] for kind in zip(offsets, lengths, strict=True)], dim=1)
                for which in (0, 1)
            )
        return Positions(cos=cos, sin=sin, query_scale=scale)

    def check_rows(self, context: AttentionContext, count: int) -> None:
        """Refuses what rows with a cache, or with lengths of their own, do not go with.

        Raises:
            ValueError: naming it.
        """
        if self.training:
            raise ValueError("a key/value cache is for inference; call eval() on the model first")
        if self.context_group.size() > 1:
            raise ValueError("a key/value cache does not go with context parallelism; use another layout")
        if context.document_ids_bs is not None:
            raise ValueError("a key/value cache holds one document a row; leave out document_ids_bs")
        length = max(context.offsets, default=0) + count
        if self.evaluated.use_dynamic_ntk and length > self.evaluated.native_length and not context.text_lengths:
            # Keys in the cache were rotated with the base of a shorter text.
            raise ValueError(
                f"dynamic NTK beyond {self.evaluated.native_length} tokens changes the base with the length, which "
                "keys in a cache do not follow; give text_lengths, by which the base of a text stays"
            )
