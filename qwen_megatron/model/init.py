"""Initial weights as a function of the seed and of global names: every layout starts from the same model.

A weight is cut into blocks of 16 rows (columns, where tensor parallelism splits columns); each block has its own
generator, seeded by the weight's global name and the block's number. A rank draws the blocks its shard touches, no
others.
Source: Qwen Technical Report, section 2.4, and the released code: N(0, 0.02), projections back into the residual stream
N(0, 0.02 / sqrt(2 * num_layers)), norms 1, biases 0.
"""

from __future__ import annotations

import math

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.transformer.module import MegatronModule

from qwen_megatron.parallel.rng import derived_seed

BLOCK = 16

# Weights whose columns tensor parallelism splits; both write into the residual stream.
RESIDUAL_PROJECTIONS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@torch.no_grad()
def initialize_weights(model: MegatronModule, *, seed: int, std: float, num_layers: int) -> None:
    """Fills every parameter of this rank's part of the model.

    Args:
        model: A Megatron-Core model with `sharded_state_dict`; its parameters are overwritten.
        seed: `training.seed`.
        std: Standard deviation of linear and embedding weights.
        num_layers: Layers of the whole model, for the residual projections.
    """
    state = model.sharded_state_dict()
    apply_factories(state)
    for shard in nested_values(state):
        if not isinstance(shard, ShardedTensor) or shard.data is None:
            continue
        fill(shard, seed=seed, std=std, num_layers=num_layers)


def fill(shard: ShardedTensor, *, seed: int, std: float, num_layers: int) -> None:
    """Overwrites one shard of one weight in place."""
    data = shard.data
    if shard.key.endswith("layer_norm_weight") or shard.key.endswith("layernorm.weight"):
        data.fill_(1.0)
    elif shard.key.endswith(".bias"):
        data.zero_()
    elif shard.key.endswith(".weight") and data.dim() == 2:
        # Leading axes (the layer's number) are part of the name; the last two are rows and columns.
        prefix = shard.prepend_axis_num
        name = (shard.key, *shard.global_offset[:prefix])
        rows, columns = shard.global_shape[prefix:]
        row, column = shard.global_offset[prefix:]
        if shard.key.endswith(RESIDUAL_PROJECTIONS):
            std = std / math.sqrt(2 * num_layers)
            values = normal_rows((seed, *name), data.size(1), column, rows).T[row : row + data.size(0)]
        else:
            values = normal_rows((seed, *name), data.size(0), row, columns)[:, column : column + data.size(1)]
        data.copy_(values * std)
    else:
        raise ValueError(f"no initialisation is written for the weight {shard.key} of shape {tuple(data.shape)}")


def normal_rows(name: tuple[object, ...], count: int, first: int, width: int) -> torch.Tensor:
    """Rows `first` to `first + count` of a standard normal matrix that is fixed by its name, fp32 [count, width]."""
    start, stop = first // BLOCK, -(-(first + count) // BLOCK)
    blocks = torch.empty((stop - start) * BLOCK, width)
    generator = torch.Generator()
    for number in range(start, stop):
        generator.manual_seed(derived_seed("weight", *name, number))
        block = blocks[(number - start) * BLOCK : (number - start + 1) * BLOCK]
        torch.randn(block.shape, generator=generator, out=block)
    offset = first - start * BLOCK
    return blocks[offset : offset + count]
