"""The output layer that can go on to the loss without leaving logits behind."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from qwen_megatron.model.linear import ColumnLinear
from qwen_megatron.model.loss import VocabularyShard, head_cross_entropy

# What Megatron-Core's own linears add a weight's gradient to the fp32 buffer with; NVIDIA apex brings it.
HAS_APEX_GRADIENTS = find_spec("fused_weight_gradient_mlp_cuda") is not None


class OutputLayer(ColumnLinear):
    """Megatron-Core's column-parallel linear; given labels and a mask, losses instead of logits.

    It is one module for both, so that hooks on its weight (gathering of updated weights) act either way.
    """

    def __init__(self, *args: Any, **others: Any):
        super().__init__(*args, **others)
        # The layers' linears may do it without apex; this one may not, where its logits are asked for.
        self.gradient_accumulation_fusion: bool = self.config.gradient_accumulation_fusion and HAS_APEX_GRADIENTS

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels_bs: torch.Tensor | None = None,
        loss_mask_bs: torch.Tensor | None = None,
        vocab_size: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[s, b, h] to logits [s, b, v / tp], or to losses [b, s] fp32 where labels and mask are given.

        Args:
            input_: Last layer's output, [s / tp, b, h] under sequence parallelism.
            weight: Weight to use where the layer has none of its own (tied embeddings).
            runtime_gather_output: Gather the logits of all tensor-parallel ranks.
            labels_bs: [b, s] int64.
            loss_mask_bs: [b, s] fp32 factor of each token's loss; the sum of their products is what can be minimised.
            vocab_size: Rows of the vocabulary without padding; with labels only.
        Returns:
            Logits or losses, and None: there is no bias.
        """
        if labels_bs is None or loss_mask_bs is None:
            return super().forward(input_, weight, runtime_gather_output)
        losses_sb = head_cross_entropy(
            input_,
            self.weight if weight is None else weight,
            labels_bs.t(),
            loss_mask_bs.t().float(),
            VocabularyShard(vocab_size=vocab_size, rows=self.output_size_per_partition, tp_group=self.tp_group),
            sequence_parallel=self.sequence_parallel,
        )
        return losses_sb.t().contiguous(), None
