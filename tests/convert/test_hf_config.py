"""config.json of both formats: every value, the names of the first release, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.presets import PRESETS
from qwen_megatron.convert.hf_config import read_config, write_config, write_generation_config
from qwen_megatron.convert.name_map import Format
from qwen_megatron.errors import CheckpointError
from tests.convert.random_weights import TINY, TINY3

# The configuration of the first release (August 2023), with small sizes.
FIRST_RELEASE = {
    "activation": "swiglu",
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["QWenLMHeadModel"],
    "attn_pdrop": 0.0,
    "ffn_hidden_size": 264,
    "initializer_range": 0.02,
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-06,
    "model_type": "qwen",
    "n_embd": 48,
    "n_head": 3,
    "n_inner": None,
    "n_layer": 3,
    "no_bias": True,
    "padded_vocab_size": 160,
    "pos_emb": "rotary",
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 24,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 151,
}
QWEN2 = {
    "hidden_size": 64,
    "intermediate_size": 100,
    "max_position_embeddings": 128,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "vocab_size": 1000,
}


def read(content: dict[str, Any], folder: Path) -> Any:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return read_config(path)


def refused(content: dict[str, Any], folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(content, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'config.json'}: ")
    return message


def test_the_first_releases_names_mean_the_same(qwen1_mini: Path, tmp_path: Path) -> None:
    assert read(FIRST_RELEASE, tmp_path) == read_config(qwen1_mini / "config.json")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("hf_format", list(Format))
def test_every_preset_survives_the_round_trip(name: str, hf_format: Format, tmp_path: Path) -> None:
    is_qwen3 = hf_format is Format.QWEN3
    model = dataclasses.replace(PRESETS[name], qk_layernorm=is_qwen3, add_qkv_bias=not is_qwen3)
    written = write_config(model, hf_format, torch.bfloat16, has_qwen_tokens=True)
    if not hf_format.has_stretches:
        model = dataclasses.replace(model, use_dynamic_ntk=False, use_logn_attn=False)
    assert read(written, tmp_path) == (hf_format, model)
    assert written["torch_dtype"] == "bfloat16"


def test_the_released_qwen1_layout_is_written() -> None:
    config = write_config(PRESETS["qwen-7b"], Format.QWEN1, torch.bfloat16, has_qwen_tokens=True)
    released = {"intermediate_size": 22016, "seq_length": 8192, "max_position_embeddings": 32768, "bf16": True}
    released |= {"num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 151936, "no_bias": True, "fp32": False}
    assert released.items() <= config.items()
    assert "auto_map" not in config


@pytest.mark.parametrize("hf_format", [Format.QWEN2, Format.QWEN3])
def test_transformers_reads_every_value(hf_format: Format) -> None:
    from transformers import Qwen2Config, Qwen3Config

    shape = TINY3 if hf_format is Format.QWEN3 else dataclasses.replace(TINY, num_query_groups=2, kv_channels=12)
    model = dataclasses.replace(shape, tie_word_embeddings=True)
    kind = Qwen3Config if hf_format is Format.QWEN3 else Qwen2Config
    config = kind(**write_config(model, hf_format, torch.float32, has_qwen_tokens=False))
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (12, 2, 24)
    assert config.rope_parameters == {"rope_theta": 20000.0, "rope_type": "default"}
    assert (config.rms_norm_eps, config.max_position_embeddings, config.tie_word_embeddings) == (1e-5, 32, True)
    assert config.dtype is torch.float32


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5000.0},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
        {"rope_theta": 5000.0, "rope_scaling": None, "rope_parameters": {"rope_theta": 5000.0}},
    ],
    ids=["transformers-4", "transformers-5", "both"],
)
def test_rotary_base_of_both_generations(rope: dict[str, Any], tmp_path: Path) -> None:
    _, model = read(QWEN2 | rope, tmp_path)
    assert model.rotary_base == 5000.0


@pytest.mark.parametrize(
    "change",
    [
        {"max_window_layers": 3, "sliding_window": 64},
        {"max_window_layers": 0, "sliding_window": None},
        {"sliding_window": 64},
        {"max_window_layers": 0, "sliding_window": 64, "layer_types": ["full_attention"] * 3},
    ],
)
def test_a_window_that_no_layer_has_is_full_attention(change: dict[str, Any], tmp_path: Path) -> None:
    from transformers import Qwen2Config

    content = QWEN2 | {"num_hidden_layers": 3, "use_sliding_window": True} | change
    assert set(Qwen2Config(**content).layer_types) == {"full_attention"}
    _, model = read(content, tmp_path)
    assert model.num_layers == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 64, "num_hidden_layers": 3},
            "use_sliding_window=true: layers from max_window_layers(2) on attend to a window",
        ),
        (
            {"use_sliding_window": True, "num_hidden_layers": 29},
            "use_sliding_window=true: layers from max_window_layers(28) on attend to a window",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only full_attention is supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scaled or partial rotary positions are not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling="),
        ({"rope_parameters": {"rope_type": ["x"], "rope_theta": 1.0}}, "rope_parameters="),
        ({"rope_parameters": {"rope_theta": 6000.0}}, "are names of one value and must agree"),
        ({"rope_parameters": 3}, "rope_parameters=3"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"hidden_act": "gelu"}, 'hidden_act="gelu": only "silu" is supported'),
        ({"quantization_config": {"bits": 4}}, "convert the unquantized model"),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers="2": must be an integer'),
        ({"num_hidden_layers": True}, "num_hidden_layers=true: must be an integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": -1}, "model.num_layers=-1: must be at least 1"),
        ({"num_hidden_layers": 10**18}, "must be at most 10000"),
        ({"num_hidden_layers": 10**30}, "must be an integer"),
        ({"num_attention_heads": 0}, "must be at least 1"),
        ({"num_key_value_heads": 3}, "model.num_query_groups=3: must divide model.num_attention_heads(4)"),
        ({"head_dim": 15}, "model.kv_channels=15: must be even"),
        ({"rms_norm_eps": "small"}, "must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1: must be true or false"),
        ({"model_type": "llama"}, 'model_type="llama": must be qwen'),
        ({"model_type": "qwen3_moe", "num_experts": 8}, 'model_type="qwen3_moe": must be qwen'),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled or partial rotary positions are not supported"),
        ({"rope_parameters": {"rope_theta": 5000.0, "mrope_section": [16, 24, 24]}}, "mrope_section is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5000.0}}}, "full_attention is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: only 1.0 is supported"),
        ({"use_mrope": True}, "use_mrope=true: only false is supported"),
        ({"is_causal": False}, "is_causal=false: only true is supported"),
        ({"dual_chunk_attention_config": {"chunk_size": 262144}}, "no qwen2 model here reads it"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0: no qwen2 model here reads it"),
        ({"num_nextn_predict_layers": 1}, "if it does not change what the model computes, remove it"),
        ({"model_type": ["qwen2"]}, "must be qwen"),
    ],
)
def test_what_qwen2_files_may_not_say(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refused(QWEN2 | change, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rotary_pct": 0.25}, "rotary_pct=0.25: only 1.0 is supported"),
        ({"no_bias": False}, "only query, key and value have biases"),
        ({"scale_attn_weights": False}, "scale_attn_weights=false"),
        ({"ffn_hidden_size": 265}, "intermediate_size=265: must be even"),
        ({"intermediate_size": 132}, "are names of one value and must agree"),
        ({"n_embd": 64}, "kv_channels=16: times num_attention_heads(3) must be hidden_size(64)"),
        ({"use_dynamic_ntk": None}, "use_dynamic_ntk is missing"),
        ({"seq_length": None}, "seq_length is missing"),
        ({"resid_pdrop": 0.1}, "resid_pdrop=0.1: only 0.0 is supported"),
        ({"attn_logit_scaling": 2.0}, "attn_logit_scaling=2.0: no qwen1 model here reads it"),
    ],
)
def test_what_qwen1_files_may_not_say(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refused(FIRST_RELEASE | change, tmp_path)


def test_generation_stops_at_the_end_of_the_document() -> None:
    assert write_generation_config(has_qwen_tokens=True)["eos_token_id"] == 151643
    assert "eos_token_id" not in write_generation_config(has_qwen_tokens=False)


# As released, without the tokens' numbers: each key must be known.
RELEASED: dict[str, dict[str, Any]] = {
    "Qwen-7B": {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "initializer_range": 0.02,
        "kv_channels": 128,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 32768,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 8192,
        "softmax_in_fp32": False,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_cache_kernel": False,
        "use_cache_quantization": False,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": 151936,
    },
    "Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


@pytest.mark.parametrize(
    ("name", "hf_format", "parameters"),
    [
        ("Qwen-7B", Format.QWEN1, 7_721_324_544),
        ("Qwen2.5-7B", Format.QWEN2, 7_615_616_512),
        ("Qwen3-0.6B", Format.QWEN3, 596_049_920),
    ],
)
def test_released_files_are_read(name: str, hf_format: Format, parameters: int, tmp_path: Path) -> None:
    found, model = read(RELEASED[name], tmp_path)
    assert found is hf_format
    assert count_parameters(model) == parameters
    assert (model.qk_layernorm, model.add_qkv_bias) == ((True, False) if hf_format is Format.QWEN3 else (False, True))


def test_a_qwen3_head_does_not_follow_from_the_hidden_size(tmp_path: Path) -> None:
    """As transformers' default has it."""
    content = {key: value for key, value in RELEASED["Qwen3-0.6B"].items() if key != "head_dim"}
    assert read(content, tmp_path)[1].kv_channels == 128
    assert "attention_bias=true: only false" in refused(content | {"attention_bias": True}, tmp_path)


def test_what_transformers_writes_by_itself_is_known(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen3Config

    for kind in (Qwen2Config, Qwen3Config):
        kind(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}).save_pretrained(tmp_path)
        assert read_config(tmp_path / "config.json")[1].rotary_base == 5000.0
