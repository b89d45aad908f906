"""Causal attention on torch's kernels, without positions.

Legend: s sequence, b micro-batch, n heads on this rank, g key/value heads on this rank, d head size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.attention_context import AttentionContext, context_of
from qwen_megatron.model.dropout import ATTENTION, derived_keys, dropout_mask, needed_keys
from qwen_megatron.model.packed import Documents, packed, unpacked
from qwen_megatron.parallel.context import GatherSequence, slice_numbers
from qwen_megatron.platforms.cached_attention import cached_attention, takes_cached
from qwen_megatron.platforms.packed_attention import has_packed_attention, packed_attention

# Queries whose scores within a window are computed at once.
BLOCK = 512


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
        window: int = 0,
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d].

        Args:
            packed_seq_params: Documents: tokens then see only their own. Offsets: keys of a row begin so many tokens
                before its queries.
            window: Tokens that a token sees, itself included; 0 for all up to itself.
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
        offset = max(context.offsets, default=0)
        if keys != queries + offset:
            raise ValueError(
                f"causal attention takes one key a query, and one for each of {offset} tokens before, but got "
                f"{queries} queries and {keys} keys"
            )
        context.check(rows, queries * self.context_group.size())
        if offset:
            return self.attend_cached(query_sbnd, key_sbgd, value_sbgd, context, window)
        documents = context.documents
        drops = self.training and bool(self.dropout)
        if (
            documents is not None
            and has_packed_attention(query_sbnd)
            and not (drops or window or self.context_group.size() > 1)
        ):
            return unpacked(
                packed_attention(
                    packed(query_sbnd),
                    packed(key_sbgd),
                    packed(value_sbgd),
                    documents.boundaries,
                    documents.longest,
                    self.softmax_scale,
                ),
                rows,
            )
        repeat = heads // key_sbgd.size(2)
        if repeat > 1:
            key_sbgd = key_sbgd.repeat_interleave(repeat, dim=2)
            value_sbgd = value_sbgd.repeat_interleave(repeat, dim=2)
        if self.context_group.size() > 1:
            key_sbgd = GatherSequence.apply(key_sbgd, self.context_group)
            value_sbgd = GatherSequence.apply(value_sbgd, self.context_group)
        query_bnsd, key_bnsd, value_bnsd = (x.permute(1, 2, 0, 3) for x in (query_sbnd, key_sbgd, value_sbgd))
        keys_bn = None
        if drops:
            keys_b = needed_keys(context, rows, queries * self.context_group.size())
            keys_bn = self.dropout_keys(keys_b, heads)
        pieces = [
            [self.attend(query_bnsd, key_bnsd, value_bnsd, span, keys_bn, window) for span in row]
            for row in self.spans_of(context, queries)
        ]
        context_bnsd = joined([joined(row, dim=2) for row in pieces], dim=0)
        return context_bnsd.permute(2, 0, 1, 3).flatten(start_dim=2)

    def spans_of(self, context: AttentionContext, queries: int) -> list[list[Span]]:
        """This rank's queries in spans, found once for all layers where there are documents."""
        if context.documents is None:
            return spans(None, queries, self.context_group)
        return context.once("spans", lambda: spans(context.documents, queries, self.context_group))

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
        window: int,
    ) -> torch.Tensor:
        """Causal attention of one span: nothing but its keys enters the sum."""
        query_bnsd = query_bnsd[span.rows, :, span.queries]
        key_bnsd, value_bnsd = key_bnsd[span.rows, :, span.keys], value_bnsd[span.rows, :, span.keys]
        if keys_bn is not None:
            return self.attend_dropping(query_bnsd, key_bnsd, value_bnsd, span, keys_bn[span.rows])
        queries, keys = query_bnsd.size(2), key_bnsd.size(2)
        if window and window < keys:
            return self.attend_in_blocks(query_bnsd, key_bnsd, value_bnsd, window)
        if queries == keys:
            return torch.nn.functional.scaled_dot_product_attention(
                query_bnsd, key_bnsd, value_bnsd, is_causal=True, scale=self.softmax_scale
            )
        # All keys before the first query, and causally its own.
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query_bnsd.device).tril(keys - queries)
        return self.attend_masked(query_bnsd, key_bnsd, value_bnsd, mask)

    def attend_masked(
        self, query_bnsd: torch.Tensor, key_bnsd: torch.Tensor, value_bnsd: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention to the keys where a mask is true, or with an additive mask, or to all of them."""
        return torch.nn.functional.scaled_dot_product_attention(
            query_bnsd, key_bnsd, value_bnsd, attn_mask=mask, scale=self.softmax_scale
        )

    def attend_in_blocks(
        self, query_bnsd: torch.Tensor, key_bnsd: torch.Tensor, value_bnsd: torch.Tensor, window: int
    ) -> torch.Tensor:
        """Attention within a window, some queries at a time, each block with the keys that any of it sees.

        The last query is at the last key. Work and memory grow with the window, not with the square of the sequence.
        """
        queries, before = query_bnsd.size(2), key_bnsd.size(2) - query_bnsd.size(2)
        blocks = []
        for start in range(0, queries, BLOCK):
            stop = min(start + BLOCK, queries)
            first, end = max(0, before + start - window + 1), before + stop
            mask = seen(
                torch.arange(before + start, end, device=query_bnsd.device),
                torch.arange(first, end, device=query_bnsd.device),
                window,
            )
            keys = slice(first, end)
            blocks.append(
                self.attend_masked(query_bnsd[:, :, start:stop], key_bnsd[:, :, keys], value_bnsd[:, :, keys], mask)
            )
        return joined(blocks, dim=2)

    def attend_cached(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        context: AttentionContext,
        window: int,
    ) -> torch.Tensor:
        """Attention of tokens whose rows have others before them, as many as the offsets say.

        Returns:
            [s, b, n * d].
        """
        queries, keys, groups = query_sbnd.size(0), key_sbgd.size(0), key_sbgd.size(2)
        keys_bgcd, values_bgcd = key_sbgd.permute(1, 2, 0, 3), value_sbgd.permute(1, 2, 0, 3)
        if queries == 1 and takes_cached(query_sbnd[0], keys_bgcd, values_bgcd):
            lengths = [offset + 1 for offset in context.offsets]
            output_bnd = cached_attention(
                query_sbnd[0], keys_bgcd, values_bgcd, lengths, window=window, scale=self.softmax_scale
            )
            return output_bnd.flatten(start_dim=1)[None]
        # Of the shortest row, the first key that its first query sees.
        first = max(0, min(context.offsets) + 1 - window) if window else 0
        query_bnsd, key_bgsd, value_bgsd = (
            x.permute(1, 2, 0, 3) for x in (query_sbnd, key_sbgd[first:], value_sbgd[first:])
        )
        mask = None
        if queries > 1 or len(set(context.offsets)) > 1:
            mask = context.once(
                ("mask", window, first),
                lambda: additive_mask(context.offsets, queries, slice(first, keys), window, query_sbnd),
            )
        if queries == 1:
            # The heads of a group take the place of queries: the group's keys are read once, and nothing is copied.
            query_bnsd = query_bnsd.reshape(query_bnsd.size(0), groups, -1, query_bnsd.size(3))
        elif groups < query_bnsd.size(1):
            repeat = query_bnsd.size(1) // groups
            key_bgsd, value_bgsd = (x.repeat_interleave(repeat, dim=1) for x in (key_bgsd, value_bgsd))
        output = self.attend_masked(query_bnsd, key_bgsd, value_bgsd, mask)
        if queries == 1:
            return output.flatten(start_dim=1)[None]
        return output.permute(2, 0, 1, 3).flatten(start_dim=2)

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


def seen(queries: torch.Tensor, keys: torch.Tensor, window: int) -> torch.Tensor:
    """Whether a query at one position sees a key at another.

    Args:
        queries: int64 [..., q], positions.
        keys: int64 [k], positions.
        window: Tokens that a token sees, itself included; 0 for all up to itself.
    Returns:
        bool [..., q, k].
    """
    distance = queries[..., None] - keys
    return (distance >= 0) & (distance < window) if window else distance >= 0


def additive_mask(offsets: tuple[int, ...], queries: int, keys: slice, window: int, like: torch.Tensor) -> torch.Tensor:
    """What is added to the scores of rows with so many tokens before: 0 or minus infinity, [b, 1, q, k].

    In the dtype of `like`, which the kernel would otherwise convert a mask to in every layer.
    """
    positions_bq = torch.tensor(offsets, device=like.device)[:, None] + torch.arange(queries, device=like.device)
    visible = seen(positions_bq, torch.arange(keys.start, keys.stop, device=like.device), window)
    return like.new_zeros(visible.shape).masked_fill_(~visible, -math.inf)[:, None]


def spans(documents: Documents | None, count: int, group: dist.ProcessGroup) -> list[list[Span]]:
    """This rank's queries, cut where a document or one of its slices of the sequence ends.

    Args:
        documents: Of the micro-batch; None for one document a row.
        count: Queries on this rank.
        group: Context-parallel group.
    Returns:
        One list for each row, or one for all rows together.
    """
    if documents is None:
        return [row_spans(slice(None), [count * group.size()], count, group)]
    return [row_spans(slice(row, row + 1), lengths, count, group) for row, lengths in enumerate(documents.lengths)]


def row_spans(rows: slice, document_lengths: Sequence[int], count: int, group: dist.ProcessGroup) -> list[Span]:
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
