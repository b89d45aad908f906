"""Core attention: positions in Qwen's way around a kernel that knows none.

Legend: s sequence, b micro-batch, n heads on this rank, g key/value heads on this rank, d head size.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.dropout import ATTENTION, derived_keys, kept
from qwen_megatron.model.rotary import RotarySettings, dynamic_ntk_base, logn_scale, rotary_table, rotate
from qwen_megatron.model.row_context import RowContext
from qwen_megatron.parallel.context import GatherSequence, chunks_of, take_chunks


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive queries, and the keys that the last of them sees; each before it sees one less.

    Attributes:
        rows: Rows of the micro-batch.
        queries: In the order this rank holds them.
        keys: In the whole sequence.
    """

    rows: slice
    queries: slice
    keys: slice


class TorchAttention(torch.nn.Module):
    """Causal attention through torch's scaled_dot_product_attention: flash kernel on the CPU, no s x s tensor.

    Takes the arguments of Megatron-Core's core attention modules. With dropout in training, it computes the
    probabilities as they are, [b, n, s, s], because the kernel would draw masks that depend on the rank.
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
        *,
        pg_collection: ProcessGroupCollection,
    ):
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.context_group = pg_collection.cp
        self.tensor_group = pg_collection.tp

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

        Args:
            attention_mask: None, or a packed `RowContext`: tokens then see only their own document.
        Raises:
            ValueError: if another mask than these, a bias or packed sequences are given: the kernel would ignore them;
                if there are not as many keys as queries: it would line up the first ones.
        """
        for name, given in (("bias", attention_bias), ("packing", packed_seq_params)):
            if given is not None:
                raise ValueError(f"causal attention was given an attention {name}, which it would ignore")
        if attn_mask_type is not None and attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"attention is causal here, but mask type {attn_mask_type.name} was asked for")
        queries, keys, rows, heads = query_sbnd.size(0), key_sbgd.size(0), query_sbnd.size(1), query_sbnd.size(2)
        if queries != keys:
            raise ValueError(f"causal attention takes one key a query, but got {queries} queries and {keys} keys")
        context = RowContext.unpack(attention_mask, rows, queries * self.context_group.size())
        repeat = heads // key_sbgd.size(2)
        if repeat > 1:
            key_sbgd = key_sbgd.repeat_interleave(repeat, dim=2)
            value_sbgd = value_sbgd.repeat_interleave(repeat, dim=2)
        if self.context_group.size() > 1:
            key_sbgd = GatherSequence.apply(key_sbgd, self.context_group)
            value_sbgd = GatherSequence.apply(value_sbgd, self.context_group)
        query_bnsd, key_bnsd, value_bnsd = (x.permute(1, 2, 0, 3) for x in (query_sbnd, key_sbgd, value_sbgd))
        keys_bn = self.dropout_keys(context, heads) if self.training and self.dropout else None
        pieces = [
            [self.attend(query_bnsd, key_bnsd, value_bnsd, span, keys_bn) for span in row]
            for row in spans(context.document_ids_bs, queries, self.context_group)
        ]
        context_bnsd = joined([joined(row, dim=2) for row in pieces], dim=0)
        return context_bnsd.permute(2, 0, 1, 3).flatten(start_dim=2)

    def dropout_keys(self, context: RowContext, heads: int) -> torch.Tensor:
        """int64 [b, n]: a key for each row and head of the whole layer that this rank computes."""
        if context.dropout_keys_b is None:
            raise ValueError("dropout in training needs the keys of the micro-batch's rows; none were given")
        keys_b = derived_keys(derived_keys(context.dropout_keys_b, self.layer_number), ATTENTION)
        first = self.tensor_group.rank() * heads
        return derived_keys(keys_b[:, None], torch.arange(first, first + heads, device=keys_b.device))

    def attend(
        self,
        query_bnsd: torch.Tensor,
        key_bnsd: torch.Tensor,
        value_bnsd: torch.Tensor,
        span: Span,
        keys_bn: torch.Tensor | None,
    ) -> torch.Tensor:
        """Causal attention of one span: nothing but its keys enters the sum."""
        query_bnsd = query_bnsd[span.rows, :, span.queries]
        key_bnsd, value_bnsd = key_bnsd[span.rows, :, span.keys], value_bnsd[span.rows, :, span.keys]
        if keys_bn is not None:
            return self.attend_dropping(query_bnsd, key_bnsd, value_bnsd, span, keys_bn[span.rows])
        queries, keys = query_bnsd.size(2), key_bnsd.size(2)
        mask = None
        if queries < keys:
            # All keys before the first query, and causally its own.
            mask = torch.ones(queries, keys, dtype=torch.bool, device=query_bnsd.device).tril(keys - queries)
        return torch.nn.functional.scaled_dot_product_attention(
            query_bnsd, key_bnsd, value_bnsd, attn_mask=mask, is_causal=mask is None, scale=self.softmax_scale
        )

    def attend_dropping(
        self,
        query_bnsd: torch.Tensor,
        key_bnsd: torch.Tensor,
        value_bnsd: torch.Tensor,
        span: Span,
        keys_bn: torch.Tensor,
    ) -> torch.Tensor:
        """The same with dropout of the probabilities, all in fp32."""
        device, queries = query_bnsd.device, query_bnsd.size(2)
        query_positions = torch.arange(span.keys.stop - queries, span.keys.stop, device=device)[:, None]
        key_positions = torch.arange(span.keys.start, span.keys.stop, device=device)
        scale = query_bnsd.size(3) ** -0.5 if self.softmax_scale is None else self.softmax_scale
        scores = query_bnsd.float() @ key_bnsd.float().transpose(2, 3) * scale
        shares = scores.masked_fill(key_positions > query_positions, -math.inf).softmax(dim=-1)
        # Keys start at 0 in every layout; a sequence of 2^16 tokens has 2^32 pairs.
        elements = (query_positions * (1 << 16) + key_positions).to(torch.int32)
        mask = kept(keys_bn[:, :, None, None], elements, self.dropout)
        shares = torch.where(mask, shares / (1.0 - self.dropout), 0.0)
        return (shares @ value_bnsd.float()).to(query_bnsd.dtype)


def spans(document_ids_bs: torch.Tensor | None, count: int, group: dist.ProcessGroup) -> list[list[Span]]:
    """This rank's queries, cut where a document or one of its chunks of the sequence ends.

    Args:
        document_ids_bs: int64 [b, s], rising along the whole sequence; None for one document.
        count: Queries on this rank.
        group: Context-parallel group.
    Returns:
        One list for each row, or one for all rows together.
    """
    length = count * group.size()
    if document_ids_bs is None:
        return [row_spans(slice(None), [length], count, group)]
    return [
        row_spans(slice(row, row + 1), ids_s.unique_consecutive(return_counts=True)[1].tolist(), count, group)
        for row, ids_s in enumerate(document_ids_bs)
    ]


def row_spans(rows: slice, document_lengths: list[int], count: int, group: dist.ProcessGroup) -> list[Span]:
    """The spans of rows with these documents, in the order of this rank's queries."""
    size, numbers = (count, (0,)) if group.size() == 1 else (count // 2, chunks_of(group))
    found = []
    for place, number in enumerate(numbers):
        # From a query's place in the whole sequence to its place on this rank.
        first, shift = number * size, (place - number) * size
        for end, length in zip(itertools.accumulate(document_lengths), document_lengths, strict=True):
            start, stop = max(first, end - length), min(first + size, end)
            if start < stop:
                queries = slice(start + shift, stop + shift)
                found.append(Span(rows=rows, queries=queries, keys=slice(end - length, stop)))
    return found


def joined(pieces: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenation, without a copy of a single piece."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=dim)


class QwenCoreAttention(MegatronModule):
    """Rotary positions, dynamic NTK and LogN scaling, written once for every kernel.

    Megatron-Core's rotary code rounds cos and sin to the model's precision; Qwen rotates in fp32.

    Args:
        kernel: Core attention module without positions (`TorchAttention`, Transformer Engine's).
        reads_rows: The kernel takes a packed `RowContext` for its mask; others get none.
        rotary: Angles and stretching.
        pg_collection: Groups; with context parallelism each rank holds two chunks of every sequence.
        others: As in Megatron-Core's core attention modules.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        kernel: type,
        reads_rows: bool,
        rotary: RotarySettings,
        pg_collection: ProcessGroupCollection,
        **others: Any,
    ):
        super().__init__(config=config)
        self.rotary = rotary
        self.context_group = pg_collection.cp
        self.reads_rows = reads_rows
        self.kernel = kernel(config=config, pg_collection=pg_collection, **others)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **others: Any,
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d]; further arguments go to the kernel.

        Raises:
            ValueError: if documents are given and the kernel would ignore them.
        """
        length = query.size(0) * self.context_group.size()
        if not self.reads_rows:
            if RowContext.unpack(attention_mask, query.size(1), length).document_ids_bs is not None:
                raise ValueError(f"{type(self.kernel).__name__} would ignore that documents do not see each other")
            attention_mask = None
        stretch = not self.training and length > self.rotary.native_length
        base = dynamic_ntk_base(self.rotary, length) if stretch and self.rotary.use_dynamic_ntk else self.rotary.base
        cos, sin = rotary_table(base, self.rotary.head_size, length, query.device)
        cos, sin = take_chunks(cos, 0, self.context_group), take_chunks(sin, 0, self.context_group)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if stretch and self.rotary.use_logn_attn:
            scale = take_chunks(logn_scale(self.rotary, length, query.device), 0, self.context_group)
            query = query * scale.to(query.dtype)
        return self.kernel(query, key, value, attention_mask, **others)
