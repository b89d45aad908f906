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

from qwen_megatron.model.attention_context import AttentionContext, context_of
from qwen_megatron.model.dropout import ATTENTION, derived_keys, dropout_mask, needed_keys
from qwen_megatron.model.rotary import RotarySettings, dynamic_ntk_base, logn_scale, rotary_table, rotate
from qwen_megatron.parallel.context import GatherSequence, slice_numbers, take_slices


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
        packed_seq_params: AttentionContext | None = None,
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d].

        Args:
            packed_seq_params: Documents: tokens then see only their own. An offset: keys begin so many tokens before
                the queries.
        Raises:
            ValueError: if a mask, a bias or another packing is given: the kernel would ignore them; if there are not
                as many keys as queries and tokens before them: it would line up the first ones.
        """
        for name, given in (("mask", attention_mask), ("bias", attention_bias)):
            if given is not None:
                raise ValueError(f"causal attention was given an attention {name}, which it would ignore")
        context = context_of(packed_seq_params)
        if attn_mask_type is not None and attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"attention is causal here, but mask type {attn_mask_type.name} was asked for")
        queries, keys, rows, heads = query_sbnd.size(0), key_sbgd.size(0), query_sbnd.size(1), query_sbnd.size(2)
        if keys != queries + context.offset:
            raise ValueError(
                f"causal attention takes one key a query, and one for each of {context.offset} tokens before, but got "
                f"{queries} queries and {keys} keys"
            )
        context.check(rows, queries * self.context_group.size())
        repeat = heads // key_sbgd.size(2)
        if repeat > 1:
            key_sbgd = key_sbgd.repeat_interleave(repeat, dim=2)
            value_sbgd = value_sbgd.repeat_interleave(repeat, dim=2)
        if self.context_group.size() > 1:
            key_sbgd = GatherSequence.apply(key_sbgd, self.context_group)
            value_sbgd = GatherSequence.apply(value_sbgd, self.context_group)
        query_bnsd, key_bnsd, value_bnsd = (x.permute(1, 2, 0, 3) for x in (query_sbnd, key_sbgd, value_sbgd))
        keys_bn = None
        if self.training and self.dropout:
            keys_b = needed_keys(context, rows, queries * self.context_group.size())
            keys_bn = self.dropout_keys(keys_b, heads)
        pieces = [
            [self.attend(query_bnsd, key_bnsd, value_bnsd, span, keys_bn) for span in row]
            for row in spans(context.document_ids_bs, queries, self.context_group, context.offset)
        ]
        context_bnsd = joined([joined(row, dim=2) for row in pieces], dim=0)
        return context_bnsd.permute(2, 0, 1, 3).flatten(start_dim=2)

    def dropout_keys(self, keys_b: torch.Tensor, heads: int) -> torch.Tensor:
        """int64 [b, n]: a key for each row and head of the whole layer that this rank computes."""
        keys_b = derived_keys(derived_keys(keys_b, self.layer_number), ATTENTION)
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
        mask = dropout_mask(keys_bn[:, :, None, None], elements, self.dropout)
        shares = torch.where(mask, shares / (1.0 - self.dropout), 0.0)
        return (shares @ value_bnsd.float()).to(query_bnsd.dtype)


def spans(
    document_ids_bs: torch.Tensor | None, count: int, group: dist.ProcessGroup, offset: int = 0
) -> list[list[Span]]:
    """This rank's queries, cut where a document or one of its slices of the sequence ends.

    Args:
        document_ids_bs: int64 [b, s], rising along the whole sequence; None for one document.
        count: Queries on this rank.
        group: Context-parallel group.
        offset: Tokens before the first query, whose keys come first; only for one document, without context
            parallelism.
    Returns:
        One list for each row, or one for all rows together.
    """
    if offset:
        return [[Span(rows=slice(None), queries=slice(0, count), keys=slice(0, offset + count))]]
    length = count * group.size()
    if document_ids_bs is None:
        return [row_spans(slice(None), [length], count, group)]
    return [
        row_spans(slice(row, row + 1), ids_s.unique_consecutive(return_counts=True)[1].tolist(), count, group)
        for row, ids_s in enumerate(document_ids_bs)
    ]


def row_spans(rows: slice, document_lengths: list[int], count: int, group: dist.ProcessGroup) -> list[Span]:
    """The spans of rows with these documents, in the order of this rank's queries."""
    size, numbers = (count, (0,)) if group.size() == 1 else (count // 2, slice_numbers(group))
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
        takes: What the kernel takes of an `AttentionContext`: `documents`, `dropout`, `cache`.
        rotary: Angles and stretching.
        pg_collection: Groups; with context parallelism each rank holds two slices of every sequence.
        others: As in Megatron-Core's core attention modules.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        kernel: type,
        takes: frozenset[str],
        rotary: RotarySettings,
        pg_collection: ProcessGroupCollection,
        **others: Any,
    ):
        super().__init__(config=config)
        self.rotary = rotary
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
        context.refuse_beyond(self.takes, type(self.kernel).__name__)
        length = context.offset + query.size(0) * self.context_group.size()
        stretch = not self.training and length > self.rotary.native_length
        if context.cache is not None:
            self.check_cache(context, stretch=stretch)
        base = dynamic_ntk_base(self.rotary, length) if stretch and self.rotary.use_dynamic_ntk else self.rotary.base
        cos, sin = rotary_table(base, self.rotary.head_size, length, query.device)
        cos, sin = (take_slices(table[context.offset :], 0, self.context_group) for table in (cos, sin))
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if stretch and self.rotary.use_logn_attn:
            scale = logn_scale(self.rotary, length, query.device)[context.offset :]
            query = query * take_slices(scale, 0, self.context_group).to(query.dtype)
        if context.cache is not None:
            key, value = context.cache.extend(self.layer_number, key, value, context.offset)
        # A kernel that takes nothing of the context gets none: Transformer Engine would look for packed sequences.
        if self.takes:
            others["packed_seq_params"] = packed_seq_params
        return self.kernel(query, key, value, attention_mask, **others)

    def check_cache(self, context: AttentionContext, *, stretch: bool) -> None:
        """Refuses what a cache does not go with.

        Raises:
            ValueError: naming it.
        """
        if self.training:
            raise ValueError("a key/value cache is for inference; call eval() on the model first")
        if self.context_group.size() > 1:
            raise ValueError("a key/value cache does not go with context parallelism; use another layout")
        if context.document_ids_bs is not None:
            raise ValueError("a key/value cache holds one document a row; leave out document_ids_bs")
        if stretch and self.rotary.use_dynamic_ntk:
            # Keys in the cache were rotated with the base of a shorter text.
            raise ValueError(
                f"dynamic NTK beyond {self.rotary.native_length} tokens changes the base with the length, which keys "
                "in a cache do not follow; run the whole sequence, or turn model.use_dynamic_ntk off"
            )
