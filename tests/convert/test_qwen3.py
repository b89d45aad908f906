"""A folder that transformers wrote itself, of a model with qwen3's norms, groups and head size, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen_megatron.checkpoint.state import saved_model_config
from qwen_megatron.convert.from_hf import from_hf
from qwen_megatron.convert.to_hf import to_hf
from qwen_megatron.inference.loading import load_for_inference, logits, single_process
from tests.convert.round_trip import assert_same_tensors


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=131,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            # Six heads of twelve are no 48: the head's size is its own.
            head_dim=12,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
        )
    ).eval()
    with torch.no_grad():
        for name, param in theirs.named_parameters():
            # Initial norms are all one, and initial matrices hide mistakes in small logits.
            param.copy_(1 + 0.3 * torch.randn_like(param) if "norm" in name else 0.2 * torch.randn_like(param))
    theirs.save_pretrained(tmp_path / "hf")
    ids_bs = torch.randint(131, (2, 40))
    with torch.no_grad():
        expected = theirs(ids_bs).logits
    from_hf(tmp_path / "hf", tmp_path / "checkpoint")
    model = saved_model_config(tmp_path / "checkpoint")
    assert (model.qk_layernorm, model.add_qkv_bias, model.kv_channels) == (True, False, 12)
    for source in ("hf", "checkpoint"):
        with single_process("cpu") as groups:
            ours = logits(load_for_inference(tmp_path / source, groups), ids_bs)
        assert (ours - expected).abs().max() < 5e-5
        assert expected.abs().max() > 1
    assert to_hf(tmp_path / "checkpoint", tmp_path / "again").value == "qwen3"
    assert_same_tensors(tmp_path / "again", tmp_path / "hf")
