"""A model that lies on the ranks of a job, as one function from tokens to hidden states and logits.

Legend: b rows, s tokens of a row, n tokens, h hidden, v vocabulary rows.
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region

from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import get_platform
from qwen_megatron.platforms.few_rows import MOST_ROWS

HIDDEN_STATES = HeadRequest(output=Output.HIDDEN_STATES)


class StagedModel:
    """Runs tokens through all pipeline stages. Every method is collective over the ranks of a replica.

    Args:
        model: This rank's part, in evaluation mode, without sequence parallelism.
        groups: Layout.
    """

    def __init__(self, model: QwenModel, groups: Groups):
        if model.training:
            raise ValueError("the model is in training mode; call eval() on it first")
        if model.config.sequence_parallel:
            raise ValueError("the model splits sequences over its ranks; build it without sequence parallelism")
        self.model = model
        self.groups = groups
        self.device = groups.device
        self.platform = get_platform(groups.device.type)
        self.vocab_size = model.num_tokens_in_vocabulary

    def hidden(self, tokens_bs: torch.Tensor, context: AttentionContext | None = None) -> torch.Tensor | None:
        """Hidden states after the final norm.

        Args:
            tokens_bs: [b, s] int64, the same on all ranks, on the model's device.
            context: Key/value cache and offsets.
        Returns:
            [b, s, h] on the ranks of the last stage, None on others.
        """
        pipeline, model = self.groups.pp, self.model
        if not self.groups.is_first_stage:
            shape = (tokens_bs.size(1), tokens_bs.size(0), model.config.hidden_size)
            received = torch.empty(shape, dtype=model.config.params_dtype, device=self.device)
            dist.recv(received, group=pipeline, group_src=pipeline.rank() - 1)
            model.set_input_tensor(received)
        with self.products(tokens_bs.numel()):
            output = model(tokens_bs, None, context, HIDDEN_STATES)
        if self.groups.is_last_stage:
            return output
        dist.send(output.contiguous(), group=pipeline, group_dst=pipeline.rank() + 1)
        return None

    def logits(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        """[n, h] of the last stage to [n, v] fp32 on all its ranks, padding rows left out."""
        with self.products(len(hidden_nh)):
            logits_nv = self.model.logits_of(hidden_nh[None])[0]
        if self.groups.tp.size() > 1:
            logits_nv = gather_from_tensor_model_parallel_region(logits_nv, group=self.groups.tp)
        return logits_nv[:, : self.vocab_size].float()

    def products(self, rows: int) -> contextlib.AbstractContextManager[object]:
        """A context for products of so many rows; those of few rows are taken without one, which costs time itself."""
        return contextlib.nullcontext() if rows <= MOST_ROWS else self.platform.products(self.model.config.params_dtype)

    def sum_over_ranks(self, values: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
        """The sum of what the ranks of a replica have come to, on all of them.

        Args:
            values: fp64 of that shape, on the CPU; None for zeros.
            shape: Known to all.
        """
        shared = torch.zeros(shape, dtype=torch.float64) if values is None else values
        group = self.groups.collection.mp
        if group.size() == 1:
            return shared
        shared = shared.to(self.device)
        dist.all_reduce(shared, group=group)
        return shared.cpu()
