"""config.json of both formats: every value, the names of the first release, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_megatron.config.presets import PRESETS
from qwen_megatron.convert.hf_config import read_config, write_config, write_generation_config
from qwen_megatron.convert.name_map import Format
from qwen_megatron.errors import CheckpointError
from tests.convert.random_weights import TINY

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
    model = PRESETS[name]
    written = write_config(model, hf_format, torch.bfloat16, has_qwen_tokens=True)
    if hf_format is Format.QWEN2:
        model = dataclasses.replace(model, use_dynamic_ntk=False, use_logn_attn=False)
    assert read(written, tmp_path) == (hf_format, model)
    assert written["torch_dtype"] == "bfloat16"


def test_the_released_qwen1_layout_is_written() -> None:
    config = write_config(PRESETS["qwen-7b"], Format.QWEN1, torch.bfloat16, has_qwen_tokens=True)
    released = {"intermediate_size": 22016, "seq_length": 8192, "max_position_embeddings": 32768, "bf16": True}
    released |= {"num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 151936, "no_bias": True, "fp32": False}
    assert released.items() <= config.items()
    assert "auto_map" not in config


def test_transformers_reads_every_value() -> None:
    from transformers import Qwen2Config

    model = dataclasses.replace(TINY, num_query_groups=2, kv_channels=12, tie_word_embeddings=True)
    config = Qwen2Config(**write_config(model, Format.QWEN2, torch.float32, has_qwen_tokens=False))
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
    ],
)
def test_what_qwen1_files_may_not_say(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refused(FIRST_RELEASE | change, tmp_path)


def test_generation_stops_at_the_end_of_the_document() -> None:
    assert write_generation_config(has_qwen_tokens=True)["eos_token_id"] == 151643
    assert "eos_token_id" not in write_generation_config(has_qwen_tokens=False)
