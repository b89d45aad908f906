"""Presets, parameter counts and operations, against released numbers and against counts made another way."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.settings.words import choices
from qwen_megatron.config.arithmetic.flops import flops_formula, training_flops_per_token, utilization_formula
from qwen_megatron.config.arithmetic.parameters import count_parameters, parameters_per_stage
from qwen_megatron.config.load import load_config
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.config.resolve import resolve
from qwen_megatron.config.schema import TYPES
from qwen_megatron.config.sections.model import ModelConfig

RELEASED_PARAMETERS = {
    "qwen-0.5b": 463_987_712,
    "qwen-1.8b": 1_836_828_672,
    "qwen-7b": 7_721_324_544,
    "qwen-14b": 14_167_290_880,
    "qwen-72b": 72_287_920_128,
}
# hidden, layers, heads, feed-forward width, vocabulary, context, rotary base, dynamic NTK and LogN, tied
RELEASED_DIMENSIONS = {
    "qwen-0.5b": (1024, 24, 16, 2816, 151936, 32768, 1e6, False, True),
    "qwen-1.8b": (2048, 24, 16, 5504, 151936, 8192, 1e4, True, False),
    "qwen-7b": (4096, 32, 32, 11008, 151936, 8192, 1e4, True, False),
    "qwen-14b": (5120, 40, 40, 13696, 152064, 2048, 1e4, True, False),
    "qwen-72b": (8192, 80, 64, 24576, 152064, 32768, 1e6, False, False),
}

architectures = st.builds(
    lambda layers, hidden, ffn, groups, per_group, head_size, vocab, tied, norms, biases: ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn * 4,
        num_attention_heads=groups * per_group * 4,
        num_query_groups=groups * 4,
        kv_channels=head_size * 2,
        vocab_size=vocab,
        seq_length=64,
        tie_word_embeddings=tied,
        qk_layernorm=norms,
        add_qkv_bias=biases,
    ),
    *(st.integers(1, 6) for _ in range(6)),
    st.integers(1, 50),
    *(st.booleans() for _ in range(3)),
)


def released_tensors(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Hugging Face file of this architecture."""
    hidden, width = model.hidden_size, model.ffn_hidden_size
    query, key = (heads * model.kv_channels for heads in (model.num_attention_heads, model.num_query_groups))
    tensors: dict[str, tuple[int, ...]] = {"embed_tokens": (model.vocab_size, hidden), "norm": (hidden,)}
    if not model.tie_word_embeddings:
        tensors["lm_head"] = (model.vocab_size, hidden)
    for layer in range(model.num_layers):
        tensors |= {f"{layer}.{name}": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, size in (("q", query), ("k", key), ("v", key)):
            tensors[f"{layer}.{name}_proj.weight"] = (size, hidden)
            if model.add_qkv_bias:
                tensors[f"{layer}.{name}_proj.bias"] = (size,)
        if model.qk_layernorm:
            tensors |= {f"{layer}.{name}_norm": (model.kv_channels,) for name in ("q", "k")}
        tensors[f"{layer}.o_proj"] = (hidden, query)
        tensors |= {f"{layer}.{name}_proj": (width, hidden) for name in ("gate", "up")}
        tensors[f"{layer}.down_proj"] = (hidden, width)
    return tensors


def test_there_is_a_preset_for_every_choice() -> None:
    assert choices(TYPES["model.preset"]) == tuple(PRESETS)


@pytest.mark.parametrize("name", RELEASED_PARAMETERS)
def test_a_preset_has_the_released_dimensions_and_parameters(name: str) -> None:
    resolved = resolve(load_config(None, [f"model.preset={name}"]))
    model = resolved.model
    assert model == PRESETS[name]
    assert (
        model.hidden_size,
        model.num_layers,
        model.num_attention_heads,
        model.ffn_hidden_size,
        model.vocab_size,
        model.seq_length,
        model.rotary_base,
        model.use_dynamic_ntk and model.use_logn_attn,
        model.tie_word_embeddings,
    ) == RELEASED_DIMENSIONS[name]
    assert model.use_dynamic_ntk == model.use_logn_attn
    assert model.num_query_groups == model.num_attention_heads
    assert model.kv_channels * model.num_attention_heads == model.hidden_size
    assert resolved.num_parameters == RELEASED_PARAMETERS[name]
    assert resolved.num_parameters_per_rank == (RELEASED_PARAMETERS[name],)


@given(architectures)
def test_parameters_are_those_of_the_released_tensors(model: ModelConfig) -> None:
    assert count_parameters(model) == sum(math.prod(shape) for shape in released_tensors(model).values())


@given(architectures, st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_what_the_ranks_hold_is_the_model_plus_what_is_replicated(model: ModelConfig, tensor: int, stages: int) -> None:
    model = dataclasses.replace(model, num_layers=model.num_layers * stages)
    padded = -(-model.vocab_size // tensor) * tensor
    layers = (model.num_layers // stages,) * stages
    held = tensor * sum(
        parameters_per_stage(model, tensor_size=tensor, padded_vocab_size=padded, layers_per_stage=layers)
    )
    of_heads = 2 * model.num_layers * model.kv_channels if model.qk_layernorm else 0
    norms = ((2 * model.num_layers + 1) * model.hidden_size + of_heads) * (tensor - 1)
    matrices = 1 if model.tie_word_embeddings and stages == 1 else 2
    padding = matrices * (padded - model.vocab_size) * model.hidden_size
    copy = model.vocab_size * model.hidden_size if model.tie_word_embeddings and stages > 1 else 0
    assert held == count_parameters(model) + norms + padding + copy


@given(architectures, st.integers(1, 512))
def test_operations_are_those_of_the_products_counted_one_by_one(model: ModelConfig, seq_length: int) -> None:
    tensors = released_tensors(model)
    weights = sum(math.prod(shape) for name, shape in tensors.items() if len(shape) == 2 and name != "embed_tokens")
    if model.tie_word_embeddings:
        weights += math.prod(tensors["embed_tokens"])
    scores_and_values = 2 * (2 * model.kv_channels * seq_length / 2) * model.num_attention_heads * model.num_layers
    expected = 3 * (2 * weights + scores_and_values)
    assert training_flops_per_token(model, seq_length) == pytest.approx(expected, rel=1e-12)


def test_operations_of_the_7b_model() -> None:
    # 6 x (7,721,324,544 - 622,329,856 of the embedding - norms and biases) + causal attention at 2048.
    resolved = resolve(load_config(None, ["model.preset=qwen-7b"]))
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 151936 * 4096
    assert resolved.flops_per_token == 6 * matrices + 6 * 2048 * 4096 * 32


def test_the_printed_formula_gives_the_number() -> None:
    model = PRESETS["qwen-7b"]
    text = flops_formula(model, 2048)
    weights, attention = (
        float(re.search(pattern, text)[1].replace(",", ""))  # type: ignore[index]
        for pattern in (r"2 x ([\d,]+) weights", r"\+ ([\d,]+) of causal")
    )
    assert 3 * (2 * weights + attention) == training_flops_per_token(model, 2048)
    assert text.startswith(f"{training_flops_per_token(model, 2048):.4g} FLOPs a token")
    assert utilization_formula(989.0, 16) == "MFU = that x tokens/s / (16 ranks x 989 TFLOP/s)"
    assert "peak_tflops_per_rank" in utilization_formula(None, 16)
