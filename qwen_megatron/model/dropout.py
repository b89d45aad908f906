"""Dropout whose masks are the same on every layout.

Whether an element is kept is a hash of the seed, the step, the sample, the layer, the place in the layer, and the
element's position in the whole sequence and its channel or head: never of the rank. A rank computes the masks of what
it holds, and recomputation computes them again.
Legend: s sequence on this rank, b micro-batch, h hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.layer import QwenLayer
from qwen_megatron.parallel.context import positions_of
from qwen_megatron.parallel.rng import derived_seed

# Places in a layer, and the embedding, which stands before layer 1.
EMBEDDING, ATTENTION, ATTENTION_OUTPUT, MLP_OUTPUT = range(4)

INT64 = 1 << 64


def signed(value: int) -> int:
    """A 64-bit constant as int64 holds it."""
    return value - INT64 if value >= INT64 // 2 else value


# Increment and multipliers of SplitMix64 (Steele, Lea and Flood 2014).
GAMMA, FIRST, SECOND = (signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def row_keys(seed: int, step: int, samples: Sequence[object]) -> torch.Tensor:
    """int64 [b]: one key for each sample in a step."""
    return torch.tensor([derived_seed("dropout", seed, step, sample) for sample in samples], dtype=torch.int64)


def derived_keys(keys: torch.Tensor, number: int | torch.Tensor) -> torch.Tensor:
    """int64: for every key another one, by number; int64 arithmetic wraps around (SplitMix64)."""
    offset = (number + 1) * GAMMA
    x = keys + (signed(offset % INT64) if isinstance(offset, int) else offset)
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * FIRST
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)


def dropout_mask(keys: torch.Tensor, elements: torch.Tensor, probability: float) -> torch.Tensor:
    """Which elements stay.

    Args:
        keys: int64, broadcasts with `elements`.
        elements: int32 number of each element; numbers beyond 32 bits may wrap around.
        probability: Of being dropped, below 1.
    Returns:
        Bool, of the broadcast shape.
    """
    x = scramble(elements ^ keys.to(torch.int32))
    x = scramble(x.bitwise_xor_((keys >> 32).to(torch.int32)))
    return x >= min(round(probability * (1 << 32)), (1 << 32) - 1) - (1 << 31)


def scramble(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int32, in place, that spreads every bit over all (Wellons 2018, "lowbias32")."""
    x ^= x >> 16 & 0xFFFF
    x *= 0x7FEB352D
    x ^= x >> 15 & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= x >> 16 & 0xFFFF
    return x


def needed_keys(context: AttentionContext | None, rows: int, length: int) -> torch.Tensor:
    """int64 [b]: the dropout keys of a micro-batch of `rows` sequences of `length` tokens.

    Raises:
        ValueError: if there are none, or they are those of another micro-batch.
    """
    if context is None or context.dropout_keys_b is None:
        raise ValueError("dropout in training needs the keys of the micro-batch's rows; none were given")
    context.check(rows, length)
    return context.dropout_keys_b


class HiddenDropout:
    """Dropout of hidden states in one place of the model.

    Args:
        probability: Of being dropped.
        layer: Number of the layer in the whole model, from 1; 0 is the embedding.
        place: One of the constants above.
        context_group: Ranks that share a sequence by slices.
        split_group: Ranks that share it further under sequence parallelism; None without.
    """

    def __init__(
        self,
        probability: float,
        *,
        layer: int,
        place: int,
        context_group: dist.ProcessGroup,
        split_group: dist.ProcessGroup | None,
    ):
        self.probability = probability
        self.layer, self.place = layer, place
        self.context_group, self.split_group = context_group, split_group

    @property
    def parts(self) -> int:
        """Ranks that share a sequence."""
        return self.context_group.size() * (1 if self.split_group is None else self.split_group.size())

    def __call__(self, hidden_sbh: torch.Tensor, context: AttentionContext | None) -> torch.Tensor:
        """[s, b, h] to [s, b, h].

        Args:
            hidden_sbh: This rank's part.
            context: Of the micro-batch.
        Raises:
            ValueError: if it holds no keys.
        """
        length, rows, width = hidden_sbh.shape
        keys_b = needed_keys(context, rows, length * self.parts)
        keys_b = derived_keys(derived_keys(keys_b, self.layer), self.place)
        device = hidden_sbh.device
        positions_s = positions_of(length, self.context_group, self.split_group, device)
        elements_sbh = (positions_s[:, None, None] * width + torch.arange(width, device=device)).to(torch.int32)
        mask_sbh = dropout_mask(keys_b[None, :, None], elements_sbh, self.probability)
        return torch.where(mask_sbh, hidden_sbh / (1.0 - self.probability), 0.0)


class DropoutAdd:
    """Megatron-Core's bias-dropout-add with our masks; Qwen's projections have no bias.

    Args:
        dropout: Of this place.

    Attributes:
        context: Of the micro-batch, set by the layer at each of its calls.
    """

    def __init__(self, dropout: HiddenDropout):
        self.dropout = dropout
        self.context: AttentionContext | None = None

    def __call__(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        """As Megatron-Core asks for it: the function for this mode; fused or not makes no difference."""

        def add(
            output_with_bias: tuple[torch.Tensor, torch.Tensor | None], residual_sbh: torch.Tensor, probability: float
        ) -> torch.Tensor:
            output_sbh, _ = output_with_bias
            return residual_sbh + (self.dropout(output_sbh, self.context) if training else output_sbh)

        return add


class DropoutLayer(QwenLayer):
    """The layer with our dropout after attention and feed-forward layer.

    Args:
        dropout: Probability.
        others: As for Megatron-Core's.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *args: Any,
        pg_collection: ProcessGroupCollection,
        dropout: float,
        **others: Any,
    ):
        super().__init__(config, *args, pg_collection=pg_collection, **others)
        split_group = pg_collection.tp if config.sequence_parallel else None
        self.self_attn_bda, self.mlp_bda = (
            DropoutAdd(
                HiddenDropout(
                    dropout,
                    layer=self.layer_number,
                    place=place,
                    context_group=pg_collection.cp,
                    split_group=split_group,
                )
            )
            for place in (ATTENTION_OUTPUT, MLP_OUTPUT)
        )

    def forward(self, *args: Any, packed_seq_params: AttentionContext | None = None, **others: Any) -> Any:
        """As Megatron-Core's, which hands the context to the attention only."""
        self.self_attn_bda.context = self.mlp_bda.context = packed_seq_params
        return super().forward(*args, packed_seq_params=packed_seq_params, **others)
