"""What our settings become in Megatron-Core's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.errors import PlatformError
from qwen_megatron.model.builder import build_model
from qwen_megatron.model.megatron_config import transformer_config
from qwen_megatron.parallel.groups import Groups

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=50,
    seq_length=64,
    implementation="torch",
)


def config_of(groups: Groups, **options: Any) -> Any:
    return transformer_config(MODEL, groups, precision="bf16", **options)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_fp8_recipes_are_megatrons(recipe: str, groups: Groups) -> None:
    config = config_of(groups, fp8=recipe)
    assert (config.fp8, config.fp8_recipe) == ("hybrid", recipe)
    # Weights stay in bf16: their FP8 copies are made once for all micro-batches of a step, by Transformer Engine.
    assert not config.fp8_param
    assert config_of(groups).fp8 is None


def test_outer_layers_may_stay_in_bf16(groups: Groups) -> None:
    config = config_of(groups, fp8="tensorwise", fp8_first_last_layers_bf16=True)
    assert config.first_last_layers_bf16
    assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (1, 1)


def test_fp8_without_kernels_for_it_is_refused(groups: Groups) -> None:
    with pytest.raises(PlatformError, match=r"training\.fp8=delayed: only Transformer Engine's kernels"):
        build_model(MODEL, groups, precision="bf16", fp8="delayed")


def test_deterministic_and_fusion_are_passed_on(groups: Groups) -> None:
    config = config_of(groups, deterministic=True, fuses_weight_gradients=True)
    assert config.deterministic_mode
    assert config.gradient_accumulation_fusion
    plain = config_of(groups)
    assert not plain.deterministic_mode
    assert not plain.gradient_accumulation_fusion
    # The host does not wait after every transfer between pipeline stages.
    assert not plain.batch_p2p_sync
