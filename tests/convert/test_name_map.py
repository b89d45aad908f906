"""The mapping table against transformers' own names and shapes, and re-orderings against hand-written ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.convert.hf_config import read_config, write_config
from qwen_megatron.convert.name_map import TABLE, Format, hf_tensors, parts
from qwen_megatron.convert.tensor_ops import merge_qkv, split_qkv
from tests.convert.random_weights import SHAPES, RandomWeights, formats_of

EXPRESSED = [(name, hf_format) for name, model in SHAPES.items() for hf_format in formats_of(model)]


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_those_of_transformers(name: str) -> None:
    import transformers

    model = SHAPES[name]
    hf_format = formats_of(model)[0]
    kind = getattr(transformers, f"{hf_format.value.capitalize()}ForCausalLM")
    config = kind.config_class(**write_config(model, hf_format, torch.float32, has_qwen_tokens=False))
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    if model.tie_word_embeddings:
        # One tensor under two names in memory, one in files.
        assert theirs.pop("lm_head.weight") == theirs["model.embed_tokens.weight"]
    assert hf_tensors(model, hf_format) == theirs


def test_qwen1_names_and_shapes_are_those_of_the_released_layout(qwen1_mini: Path) -> None:
    hf_format, model = read_config(qwen1_mini / "config.json")
    stored = {}
    for file in qwen1_mini.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            stored |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    assert hf_format is Format.QWEN1
    assert hf_tensors(model, hf_format) == stored


@pytest.mark.parametrize(("name", "hf_format"), EXPRESSED)
def test_both_directions_of_the_table_are_inverse(name: str, hf_format: Format) -> None:
    model = SHAPES[name]
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
    gate, up = (
        torch.ones(SHAPES["plain"].ffn_hidden_size, SHAPES["plain"].hidden_size),
        torch.zeros(SHAPES["plain"].ffn_hidden_size, SHAPES["plain"].hidden_size),
    )
    # Megatron-Core applies the activation to the first half of the rows.
    assert torch.equal(entry.merge((gate, up), SHAPES["plain"])[: SHAPES["plain"].ffn_hidden_size], gate)
    assert [name.rsplit(".", 2)[1] for name in entry.qwen1] == ["w2", "w1"]
    assert [name.rsplit(".", 2)[1] for name in entry.qwen2] == ["gate_proj", "up_proj"]
