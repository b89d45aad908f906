"""Transformer Engine's core attention behind what our layers know of a micro-batch: documents and dropout keys.

Legend: s sequence on this rank, b micro-batch, n heads on this rank, g key/value heads, d head size, t tokens (b * s).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.attention_context import AttentionContext, context_of
from qwen_megatron.model.dropout import needed_keys
from qwen_megatron.model.packed import packed, unpacked
from qwen_megatron.parallel.rng import derived_seed, seed_tracker


class EngineAttention(torch.nn.Module):
    """Causal attention by a module with the arguments of Megatron-Core's `TEDotProductAttention`.

    Documents go to it in the format `thd`. Masks of dropout are drawn by its own generator, which is set for each layer
    and micro-batch: they repeat on the same layout, but depend on it, other than those of the torch kernels.

    Args:
        config: Megatron's configuration.
        kernel: The module's class.
        pg_collection: Groups.
        layer_number: From 1.
        others: As in Megatron-Core's core attention modules.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        kernel: type,
        pg_collection: ProcessGroupCollection,
        layer_number: int,
        **others: Any,
    ):
        super().__init__()
        given = others.get("attention_dropout")
        self.dropout = config.attention_dropout if given is None else given
        self.context_group, self.tensor_group = pg_collection.cp, pg_collection.tp
        self.layer_number = layer_number
        self.kernel = kernel(config=config, pg_collection=pg_collection, layer_number=layer_number, **others)

    def forward(
        self,
        query_sbnd: torch.Tensor,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: AttentionContext | None = None,
    ) -> torch.Tensor:
        """[s, b, n, d] and twice [s, b, g, d] to [s, b, n * d].

        Raises:
            ValueError: for documents under context parallelism: the ring would cut each document, where our ranks hold
                slices of the whole sequence.
        """
        context = context_of(packed_seq_params)
        length, rows = query_sbnd.size(0), query_sbnd.size(1)
        context.check(rows, length * self.context_group.size())
        if self.training and self.dropout:
            needed_keys(context, rows, length * self.context_group.size())
            seed_tracker(
                derived_seed(context.host_keys, self.layer_number, self.tensor_group.rank(), self.context_group.rank())
            )
        arguments = {"attn_mask_type": attn_mask_type, "attention_bias": attention_bias}
        documents = context.documents
        if documents is None:
            return self.kernel(query_sbnd, key_sbgd, value_sbgd, attention_mask, **arguments)
        if self.context_group.size() > 1:
            raise ValueError(
                "data.mask_documents under context parallelism needs model.implementation=torch: Transformer Engine "
                "divides every document over the ranks, not the sequence"
            )
        boundaries, longest = documents.boundaries, documents.longest
        parameters = context.once(
            "thd",
            lambda: PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=boundaries,
                cu_seqlens_kv=boundaries,
                max_seqlen_q=longest,
                max_seqlen_kv=longest,
            ),
        )
        output_t = self.kernel(
            packed(query_sbnd),
            packed(key_sbgd),
            packed(value_sbgd),
            attention_mask,
            **arguments,
            packed_seq_params=parameters,
        )
        return unpacked(output_t, rows)
