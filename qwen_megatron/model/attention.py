"""Core attention: positions in Qwen's way around a kernel that knows none.

Legend: s sequence, b micro-batch, n heads on this rank, g key/value heads on this rank, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.rotary import RotarySettings, dynamic_ntk_base, logn_scale, rotary_table, rotate
from qwen_megatron.parallel.context import GatherSequence, chunks_of, take_chunks


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
        *,
        pg_collection: ProcessGroupCollection,
    ):
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.context_group = pg_collection.cp

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
            attention_mask: None, or the number of each token's document, int64 [b, s], in rising order: tokens then see
                only their own document.
        Raises:
            ValueError: if another mask than these, a bias or packed sequences are given: the kernel would ignore them;
                if there are not as many keys as queries: it would line up the first ones.
        """
        for name, given in (("bias", attention_bias), ("packing", packed_seq_params)):
            if given is not None:
                raise ValueError(f"causal attention was given an attention {name}, which it would ignore")
        self.check_document_ids(attention_mask, query_sbnd)
        if attn_mask_type is not None and attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"attention is causal here, but mask type {attn_mask_type.name} was asked for")
        queries, keys = query_sbnd.size(0), key_sbgd.size(0)
        if queries != keys:
            raise ValueError(f"causal attention takes one key a query, but got {queries} queries and {keys} keys")
        repeat = query_sbnd.size(2) // key_sbgd.size(2)
        if repeat > 1:
            key_sbgd = key_sbgd.repeat_interleave(repeat, dim=2)
            value_sbgd = value_sbgd.repeat_interleave(repeat, dim=2)
        query_bnsd = query_sbnd.permute(1, 2, 0, 3)
        if attention_mask is not None:
            context_bnsd = self.attend_documents(
                query_bnsd, key_sbgd.permute(1, 2, 0, 3), value_sbgd.permute(1, 2, 0, 3), attention_mask
            )
        elif self.context_group.size() == 1:
            context_bnsd = self.attend(query_bnsd, key_sbgd.permute(1, 2, 0, 3), value_sbgd.permute(1, 2, 0, 3))
        else:
            context_bnsd = self.attend_split(query_bnsd, key_sbgd, value_sbgd)
        return context_bnsd.permute(2, 0, 1, 3).flatten(start_dim=2)

    def attend(
        self,
        query_bnsd: torch.Tensor,
        key_bnsd: torch.Tensor,
        value_bnsd: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Causal attention, or under `mask` where queries do not start at the first key."""
        return torch.nn.functional.scaled_dot_product_attention(
            query_bnsd,
            key_bnsd,
            value_bnsd,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            scale=self.softmax_scale,
        )

    def check_document_ids(self, document_ids_bs: torch.Tensor | None, query_sbnd: torch.Tensor) -> None:
        if document_ids_bs is None:
            return
        expected = (query_sbnd.size(1), query_sbnd.size(0))
        if document_ids_bs.dtype != torch.int64 or tuple(document_ids_bs.shape) != expected:
            raise ValueError(
                f"the attention mask must be document ids, int64 {list(expected)}, but is {document_ids_bs.dtype} "
                f"{list(document_ids_bs.shape)}; another mask would be ignored"
            )
        if self.context_group.size() > 1:
            raise ValueError("documents cannot be told apart when a sequence is split over ranks")

    def attend_documents(
        self,
        query_bnsd: torch.Tensor,
        key_bnsd: torch.Tensor,
        value_bnsd: torch.Tensor,
        document_ids_bs: torch.Tensor,
    ) -> torch.Tensor:
        """Causal attention within each document: one call a document, so nothing of another one enters the sum."""
        rows = []
        for row, document_ids_s in enumerate(document_ids_bs):
            _, lengths = document_ids_s.unique_consecutive(return_counts=True)
            pieces = [
                tensor[row : row + 1].split(lengths.tolist(), dim=2) for tensor in (query_bnsd, key_bnsd, value_bnsd)
            ]
            rows.append(torch.cat([self.attend(*document) for document in zip(*pieces, strict=True)], dim=2))
        return torch.cat(rows)

    def attend_split(self, query_bnsd: torch.Tensor, key_sbnd: torch.Tensor, value_sbnd: torch.Tensor) -> torch.Tensor:
        """Queries of this rank's two chunks on the gathered keys and values that each may see."""
        key_bnsd = GatherSequence.apply(key_sbnd, self.context_group).permute(1, 2, 0, 3)
        value_bnsd = GatherSequence.apply(value_sbnd, self.context_group).permute(1, 2, 0, 3)
        contexts = []
        for number, query in zip(chunks_of(self.context_group), query_bnsd.chunk(2, dim=2), strict=True):
            size = query.size(2)
            seen = (number + 1) * size
            # One chunk wide: all keys before it, and causally its own.
            mask = torch.ones(size, seen, dtype=torch.bool, device=query.device).tril(seen - size) if number else None
            contexts.append(self.attend(query, key_bnsd[:, :, :seen], value_bnsd[:, :, :seen], mask))
        return torch.cat(contexts, dim=2)


class QwenCoreAttention(MegatronModule):
    """Rotary positions, dynamic NTK and LogN scaling, written once for every kernel.

    Megatron-Core's rotary code rounds cos and sin to the model's precision; Qwen rotates in fp32.

    Args:
        kernel: Core attention module without positions (`TorchAttention`, Transformer Engine's).
        rotary: Angles and stretching.
        pg_collection: Groups; with context parallelism each rank holds two chunks of every sequence.
        others: As in Megatron-Core's core attention modules.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        kernel: type,
        rotary: RotarySettings,
        pg_collection: ProcessGroupCollection,
        **others: Any,
    ):
        super().__init__(config=config)
        self.rotary = rotary
        self.context_group = pg_collection.cp
        self.kernel = kernel(config=config, pg_collection=pg_collection, **others)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d]; further arguments go to the kernel."""
        length = query.size(0) * self.context_group.size()
        stretch = not self.training and length > self.rotary.native_length
        base = dynamic_ntk_base(self.rotary, length) if stretch and self.rotary.use_dynamic_ntk else self.rotary.base
        cos, sin = rotary_table(base, self.rotary.head_size, length, query.device)
        cos, sin = take_chunks(cos, 0, self.context_group), take_chunks(sin, 0, self.context_group)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if stretch and self.rotary.use_logn_attn:
            scale = take_chunks(logn_scale(self.rotary, length, query.device), 0, self.context_group)
            query = query * scale.to(query.dtype)
        return self.kernel(query, key, value, *args, **kwargs)
