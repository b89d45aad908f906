"""The mapping table against transformers' own names and shapes, and re-orderings against hand-written ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.convert.hf_config import read_config, write_config
from qwen_megatron.convert.name_map import TABLE, Format, hf_tensors, parts
from qwen_megatron.convert.tensor_ops import merge_qkv, split_qkv
from tests.convert.random_weights import TINY, RandomWeights

GROUPED = dataclasses.replace(TINY, num_query_groups=2)
WIDE_HEADS = dataclasses.replace(TINY, num_query_groups=1, kv_channels=12)
TIED = dataclasses.replace(TINY, tie_word_embeddings=True)


@pytest.mark.parametrize("model", [TINY, GROUPED, WIDE_HEADS, TIED], ids=["plain", "grouped", "wide-heads", "tied"])
def test_qwen2_names_and_shapes_are_those_of_transformers(model: ModelConfig) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**write_config(model, Format.QWEN2, torch.float32, has_qwen_tokens=False))
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in Qwen2ForCausalLM(config).state_dict().items()}
    if model.tie_word_embeddings:
        # One tensor under two names in memory, one in files.
        assert theirs.pop("lm_head.weight") == theirs["model.embed_tokens.weight"]
    assert hf_tensors(model, Format.QWEN2) == theirs


def test_qwen1_names_and_shapes_are_those_of_the_released_layout(qwen1_mini: Path) -> None:
    hf_format, model = read_config(qwen1_mini / "config.json")
    stored = {}
    for file in qwen1_mini.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            stored |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    assert hf_format is Format.QWEN1
    assert hf_tensors(model, hf_format) == stored


@pytest.mark.parametrize("model", [TINY, GROUPED, WIDE_HEADS, TIED], ids=["plain", "grouped", "wide-heads", "tied"])
@pytest.mark.parametrize("hf_format", list(Format))
def test_both_directions_of_the_table_are_inverse(model: ModelConfig, hf_format: Format) -> None:
    source = RandomWeights(model)
    names = []
    for part in parts(model):
        tensor = source.read(part)
        there = part.entry.split(tensor, model, hf_format)
        assert tuple(tuple(piece.shape) for piece in there) == part.entry.hf_shapes(model, hf_format)
        assert torch.equal(part.entry.merge(there, model), tensor)
        names += part.hf_names(hf_format)
    assert names == list(hf_tensors(model, hf_format))
    assert sum(torch.Size(shape).numel() for shape in hf_tensors(model, hf_format).values()) == count_parameters(model)


def test_rows_of_qkv_are_interleaved_by_query_group() -> None:
    # Two groups, two query heads each, heads of size 2; the numbers say which head and row a value is of.
    q = torch.tensor([10, 11, 20, 21, 30, 31, 40, 41])
    k = torch.tensor([50, 51, 60, 61])
    v = torch.tensor([70, 71, 80, 81])
    expected = [10, 11, 20, 21, 50, 51, 70, 71, 30, 31, 40, 41, 60, 61, 80, 81]
    merged = merge_qkv(q, k, v, num_query_groups=2)
    assert merged.tolist() == expected
    parts_back = split_qkv(merged, num_attention_heads=4, num_query_groups=2, kv_channels=2)
    assert [part.tolist() for part in parts_back] == [q.tolist(), k.tolist(), v.tolist()]


def test_silu_is_on_w2_and_gate_proj() -> None:
    (entry,) = (entry for entry in TABLE if entry.key.endswith("linear_fc1.weight"))
    gate, up = torch.ones(TINY.ffn_hidden_size, TINY.hidden_size), torch.zeros(TINY.ffn_hidden_size, TINY.hidden_size)
    # Megatron-Core applies the activation to the first half of the rows.
    assert torch.equal(entry.merge((gate, up), TINY)[: TINY.ffn_hidden_size], gate)
    assert [name.rsplit(".", 2)[1] for name in entry.qwen1] == ["w2", "w1"]
    assert [name.rsplit(".", 2)[1] for name in entry.qwen2] == ["gate_proj", "up_proj"]
