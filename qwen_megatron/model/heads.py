"""What comes after the last layer, as an objective asks for it.

Legend: s sequence, b micro-batch, h hidden, v vocabulary rows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_sharded_tensor_for_checkpoint

from qwen_megatron.model.head_kinds import SCALAR_HEAD


class Output(enum.Enum):
    """What a model's last stage can return; every tensor-parallel rank gets the same, but for logits."""

    HIDDEN_STATES = "hidden states"
    """[b, s, h] after the final norm."""
    LOGITS = "logits"
    """[b, s, v / tp] where they are trained, [b, s, v] where tensor parallelism has one rank."""
    TOKEN_LOSSES = "token losses"
    """[b, s] fp32, nats."""
    LOG_PROBABILITIES = "log-probabilities"
    """[b, s] fp32 of the labels at chosen positions, 0 at others."""
    LOG_PROBABILITIES_AND_ENTROPIES = "log-probabilities and entropies"
    """[b, s, 2] fp32 at chosen positions, 0 at others; entropies in nats, without a gradient."""
    SCALARS = "scalars"
    """[b, s] fp32, of a scalar head."""


@dataclass(frozen=True, kw_only=True)
class HeadRequest:
    """What is asked of the last stage for one micro-batch.

    Attributes:
        output: Kind of the result.
        labels_bs: [b, s] int64, for losses and log-probabilities.
        loss_mask_bs: [b, s] fp32. Given with token losses, it promises that the sum of losses times mask is what is
            minimised: output layer and loss may then be computed together (`model/loss.py`), and the losses of
            other tokens are 0.
        positions_bs: [b, s] bool, where log-probabilities are wanted.
    """

    output: Output
    labels_bs: torch.Tensor | None = None
    loss_mask_bs: torch.Tensor | None = None
    positions_bs: torch.Tensor | None = None

    def __post_init__(self) -> None:
        needed = {
            Output.TOKEN_LOSSES: ("labels_bs",),
            Output.LOG_PROBABILITIES: ("labels_bs", "positions_bs"),
            Output.LOG_PROBABILITIES_AND_ENTROPIES: ("labels_bs", "positions_bs"),
        }.get(self.output, ())
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{self.output.value} need {' and '.join(missing)}")


LOGITS = HeadRequest(output=Output.LOGITS)


class ScalarHead(MegatronModule):
    """One number for each token: reward and value models.

    The weight is the same on all tensor-parallel ranks. Under sequence parallelism each works on its part of the
    sequence and the scalars are gathered, not the hidden states.

    Args:
        config: Of the model.
        tp_group: Tensor-parallel group.
    """

    def __init__(self, config: TransformerConfig, tp_group: dist.ProcessGroup):
        super().__init__(config=config)
        self.tp_group = tp_group
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(torch.empty(1, config.hidden_size, dtype=config.params_dtype))
        # Megatron-Core sums the gradients of weights marked so over the tensor-parallel ranks.
        self.weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_sbh: torch.Tensor) -> torch.Tensor:
        """[s, b, h], or [s / tp, b, h] under sequence parallelism, to [b, s] fp32."""
        # In fp32: a reward is a difference of large sums, and there is one row only.
        scalars_sb = torch.nn.functional.linear(hidden_sbh.float(), self.weight.float())[..., 0]
        if self.sequence_parallel:
            scalars_sb = gather_from_sequence_parallel_region(
                scalars_sb, tensor_parallel_output_grad=False, group=self.tp_group
            )
        return scalars_sb.t().contiguous()

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """A name of its own in checkpoints: no output layer of a vocabulary can be taken for it."""
        return {
            f"{prefix}weight": make_sharded_tensor_for_checkpoint(
                self.weight,
                SCALAR_HEAD,
                prepend_offsets=sharded_offsets,
                tp_group=self.tp_group,
                dp_cp_group=(metadata or {}).get("dp_cp_group"),
            )
        }
