"""Initial weights: the right distribution, and the same ones on every layout."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.init import BLOCK, fill, normal_rows
from qwen_megatron.parallel.groups import Groups
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=176,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=16,
    # Odd, so that tensor parallelism pads it and its shards begin inside of blocks.
    vocab_size=161,
    seq_length=64,
)
RESIDUAL = 1 / math.sqrt(2 * MODEL.num_layers)
SEED = 7

# Weight of a layer -> its standard deviation; None where it is constant.
LAYER_STD = {
    "self_attention.linear_qkv.weight": 0.02,
    "self_attention.linear_proj.weight": 0.02 * RESIDUAL,
    "mlp.linear_fc1.weight": 0.02,
    "mlp.linear_fc2.weight": 0.02 * RESIDUAL,
}
LAYER_CONSTANT = {
    "self_attention.linear_qkv.bias": 0.0,
    "input_layernorm.weight": 1.0,
    "pre_mlp_layernorm.weight": 1.0,
}


def parameters_of(
    groups: Groups, model: ModelConfig = MODEL, *, seed: int = SEED, precision: str = "fp32"
) -> dict[str, Any]:
    built = build_model(model, groups, precision=precision, seed=seed)
    return {name: param.detach() for name, param in unwrapped(built).named_parameters()}


def assert_normal(values: torch.Tensor, std: float) -> None:
    """Mean, deviation and tails of a sample of a normal distribution, each within five standard errors."""
    count = values.numel()
    assert abs(values.mean().item()) < 5 * std / math.sqrt(count)
    assert abs(values.std().item() / std - 1) < 5 / math.sqrt(2 * count)
    for bound, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        measured = (values.abs() > bound * std).double().mean().item()
        assert abs(measured - share) < 5 * math.sqrt(share / count)


def test_every_weight_has_its_distribution(groups: Groups) -> None:
    parameters = parameters_of(groups)
    for layer in range(MODEL.num_layers):
        for name, std in LAYER_STD.items():
            assert_normal(parameters.pop(f"decoder.layers.{layer}.{name}"), std)
        for name, value in LAYER_CONSTANT.items():
            constant = parameters.pop(f"decoder.layers.{layer}.{name}")
            assert torch.equal(constant, torch.full_like(constant, value))
    assert_normal(parameters.pop("embedding.word_embeddings.weight"), 0.02)
    assert_normal(parameters.pop("output_layer.weight"), 0.02)
    assert torch.equal(parameters.pop("decoder.final_layernorm.weight"), torch.ones(64))
    assert not parameters, "weights that the test does not know"


def test_norms_of_queries_and_keys_start_at_one_and_biases_can_be_left_out(groups: Groups) -> None:
    parameters = parameters_of(groups, dataclasses.replace(MODEL, qk_layernorm=True, add_qkv_bias=False))
    for norm in ("q_layernorm", "k_layernorm"):
        assert torch.equal(parameters[f"decoder.layers.1.self_attention.{norm}.weight"], torch.ones(MODEL.kv_channels))
    assert not [name for name in parameters if name.endswith("bias")]


def test_init_method_std_is_used(groups: Groups) -> None:
    parameters = parameters_of(groups, dataclasses.replace(MODEL, init_method_std=0.5))
    assert_normal(parameters["output_layer.weight"], 0.5)
    assert_normal(parameters["decoder.layers.1.mlp.linear_fc2.weight"], 0.5 * RESIDUAL)


def test_weights_are_independent_of_each_other(groups: Groups) -> None:
    """No two matrices and no two blocks of one matrix come from the same stream."""
    parameters = parameters_of(groups)
    rows = {}
    for name, param in parameters.items():
        if param.dim() == 2:
            for start in range(0, param.size(0), BLOCK):
                first = tuple(param[start, :8].tolist())
                assert first not in rows, f"{name} row {start} repeats {rows[first]}"
                rows[first] = (name, start)
            scaled = (param / param.std()).flatten()[:10000]
            assert abs((scaled[1:] * scaled[:-1]).mean().item()) < 5 / math.sqrt(len(scaled))


def test_seed_decides_everything(groups: Groups) -> None:
    first, again, other = parameters_of(groups), parameters_of(groups), parameters_of(groups, seed=SEED + 1)
    for name, param in first.items():
        assert torch.equal(param, again[name])
        if param.dim() == 2:
            assert not torch.equal(param, other[name])


def test_global_generator_has_no_say(groups: Groups) -> None:
    first = parameters_of(groups)
    torch.manual_seed(99)
    second = parameters_of(groups)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bf16_weights_are_the_fp32_ones_rounded(groups: Groups) -> None:
    exact, rounded = parameters_of(groups), parameters_of(groups, precision="bf16")
    assert exact.keys() == rounded.keys()
    for name, param in rounded.items():
        assert param.dtype == torch.bfloat16
        assert torch.equal(param, exact[name].to(torch.bfloat16))


def test_rows_of_a_matrix_do_not_depend_on_which_are_asked_for() -> None:
    whole = normal_rows(("name", 3), 100, 0, 8)
    for first, count in ((0, 1), (15, 2), (16, 16), (31, 40), (99, 1)):
        assert torch.equal(normal_rows(("name", 3), count, first, 8), whole[first : first + count])


def test_unknown_weight_is_refused() -> None:
    shard = ShardedTensor.from_rank_offsets("decoder.conv.kernel", torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match=r"decoder\.conv\.kernel of shape \(2, 2, 2\)"):
        fill(shard, seed=0, std=0.02, num_layers=4)


# (key, offset, global shape, leading axes, values) of each shard of a rank.
Shards = list[tuple[str, tuple[int, ...], tuple[int, ...], int, np.ndarray]]


def build_shards(tensor_size: int, pipeline_size: int, model: ModelConfig) -> tuple[Shards, int, int]:
    """A rank's shards, how many random numbers it drew, and how many its share in whole blocks plus one has."""
    drawn = 0
    original = torch.randn

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal drawn
        result = original(*args, **kwargs)
        drawn += result.numel()
        return result

    with groups_of(tensor_size, pipeline_size) as groups:
        with mock.patch.object(torch, "randn", counting):
            qwen = unwrapped(build_model(model, groups, precision="fp32", seed=SEED))
        state = qwen.sharded_state_dict()
        apply_factories(state)
        found = [item for item in nested_values(state) if isinstance(item, ShardedTensor) and item.data is not None]
        allowed = 0
        for shard in found:
            if shard.data.dim() == 2:
                along, across = shard.data.shape
                if shard.key.endswith(("linear_proj.weight", "linear_fc2.weight")):
                    along, across = across, along
                # Blocks go over the whole width, but no weight is split both ways.
                allowed += (-(-along // BLOCK) + 1) * BLOCK * across
        shards = [
            (item.key, item.global_offset, item.global_shape, item.prepend_axis_num, item.data.detach().numpy().copy())
            for item in found
        ]
    return shards, drawn, allowed


def assemble(ranks: list[Shards]) -> dict[str, np.ndarray]:
    """Whole weights from all ranks' shards; replicas must agree."""
    whole: dict[str, np.ndarray] = {}
    for shards in ranks:
        for key, offset, shape, prefix, values in shards:
            array = whole.setdefault(key, np.full(shape, np.nan, dtype=np.float32))
            place = (
                *offset[:prefix],
                *(slice(start, start + size) for start, size in zip(offset[prefix:], values.shape, strict=True)),
            )
            before = array[place]
            assert np.isnan(before).all() or np.array_equal(before, values), f"replicas of {key} differ"
            array[place] = values
    for key, array in whole.items():
        assert not np.isnan(array).any(), f"{key} is not covered"
    return whole


@pytest.fixture(scope="module")
def one_process(ranks: RankPool) -> dict[str, np.ndarray]:
    ((shards, drawn, allowed),) = ranks.run(1, build_shards, tensor_size=1, pipeline_size=1, model=MODEL)
    assert 0 < drawn <= allowed
    return assemble([shards])


@pytest.mark.parametrize(("tensor_size", "pipeline_size"), [(2, 1), (1, 2), (2, 2)])
def test_every_layout_has_the_same_weights(
    tensor_size: int, pipeline_size: int, ranks: RankPool, one_process: dict[str, np.ndarray]
) -> None:
    results = ranks.run(
        tensor_size * pipeline_size, build_shards, tensor_size=tensor_size, pipeline_size=pipeline_size, model=MODEL
    )
    whole = assemble([shards for shards, _, _ in results])
    assert whole.keys() == one_process.keys()
    for key, expected in one_process.items():
        actual = whole[key]
        if tensor_size > 1 and key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            assert actual.shape[0] == 162
            actual = actual[: MODEL.vocab_size]
        assert np.array_equal(actual, expected), key
    for _, drawn, allowed in results:
        assert 0 < drawn <= allowed


def test_tied_stages_start_equal(ranks: RankPool, one_process: dict[str, np.ndarray]) -> None:
    tied = dataclasses.replace(MODEL, tie_word_embeddings=True)
    results = ranks.run(2, build_shards, tensor_size=1, pipeline_size=2, model=tied)
    for shards, _, _ in results:
        # Both stages hold the matrix; `assemble` compares them.
        assert [key for key, *_ in shards].count("embedding.word_embeddings.weight") == 1
    whole = assemble([shards for shards, _, _ in results])
    assert "output_layer.weight" not in whole
    assert np.array_equal(whole["embedding.word_embeddings.weight"], one_process["embedding.word_embeddings.weight"])
