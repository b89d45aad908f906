"""Masks of dropout: fair, independent, and functions of names and places, not of ranks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.dropout import DropoutLayer, HiddenDropout, derived_keys, dropout_mask, row_keys
from qwen_megatron.model.layer import QwenLayer
from qwen_megatron.parallel.groups import Groups

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=50,
    seq_length=64,
)


def group(rank: int = 0, size: int = 1) -> Any:
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def dropout(context: Any, split: Any = None, layer: int = 1, place: int = 2, probability: float = 0.3) -> HiddenDropout:
    return HiddenDropout(probability, layer=layer, place=place, context_group=context, split_group=split)


def context(step: int = 1, samples: str = "ab", seed: int = 5) -> AttentionContext:
    return AttentionContext(dropout_keys_b=row_keys(seed, step, samples))


def mask(hidden: HiddenDropout, length: int = 32, **key: Any) -> torch.Tensor:
    return hidden(torch.ones(length, 2, 24), context(**key)) != 0


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_each_element_is_dropped_with_its_probability(probability: float) -> None:
    keys = row_keys(1, 1, range(64))[:, None]
    elements = torch.arange(1 << 14, dtype=torch.int32)
    dropped = ~dropout_mask(keys, elements, probability)
    count, deviation = dropped.numel(), (probability * (1 - probability)) ** 0.5
    # A million fair draws stay within five standard deviations, those of every key within six.
    assert abs(dropped.float().mean().item() - probability) < 5 * deviation / count**0.5
    assert (dropped.float().mean(dim=1) - probability).abs().max().item() < 6 * deviation / (1 << 7)
    # How often a place is dropped over 64 keys varies as it does for independent draws.
    spread = dropped.sum(dim=0).float().var().item() / (64 * deviation**2)
    assert abs(spread - 1) < 0.1


def test_neighbours_keys_and_layers_are_independent() -> None:
    keys = row_keys(1, 1, range(256))
    fair = dropout_mask(keys[:, None], torch.arange(4096, dtype=torch.int32), 0.5).float() * 2 - 1
    five_deviations = 5 / fair.numel() ** 0.5
    for distance in (1, 2, 3, 64, 176, 256):
        assert (fair[:, distance:] * fair[:, :-distance]).mean().abs() < 1.1 * five_deviations
    assert (fair[1:] * fair[:-1]).mean().abs() < five_deviations
    next_layer = (
        dropout_mask(derived_keys(keys, 1)[:, None], torch.arange(4096, dtype=torch.int32), 0.5).float() * 2 - 1
    )
    assert (fair * next_layer).mean().abs() < five_deviations


def test_masks_never_change() -> None:
    """Golden: another hash would be another run from the same seed."""
    keys = derived_keys(row_keys(1234, 7, ["0:5:0"]), 3)
    assert keys.tolist() == [-7967681166785427074]
    bits = dropout_mask(keys, torch.arange(32, dtype=torch.int32), 0.5).long()
    assert "".join(str(bit) for bit in bits.tolist()) == "01110011000110010101000000010010"


def test_everything_named_makes_another_mask() -> None:
    whole = dropout(group())
    masks = [
        mask(whole),
        mask(whole, step=2),
        mask(whole, seed=6),
        mask(whole, samples="ba"),
        mask(dropout(group(), layer=2)),
        mask(dropout(group(), place=3)),
    ]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks)
    # Rows exchanged, masks exchanged.
    assert torch.equal(masks[0], masks[3].flip(1))
    assert not torch.equal(masks[0][:, 0], masks[0][:, 1])


def test_kept_elements_grow_and_dropped_ones_have_no_gradient() -> None:
    hidden_sbh = torch.full((32, 2, 24), 7.0, requires_grad=True)
    output = dropout(group(), probability=0.25)(hidden_sbh, context())
    stays = output != 0
    torch.testing.assert_close(output[stays], torch.full_like(output[stays], 7.0 / 0.75))
    output.sum().backward()
    torch.testing.assert_close(hidden_sbh.grad, stays.float() / 0.75)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_parts_of_a_sequence_have_their_parts_of_the_mask(split: int) -> None:
    """Two context-parallel ranks hold slices 0 and 3, 1 and 2; sequence parallelism splits these further."""
    whole = mask(dropout(group()))
    slices = whole.chunk(4)
    for rank, held in enumerate(((0, 3), (1, 2))):
        expected = torch.cat([slices[number] for number in held]).chunk(split)
        for part in range(split):
            tensor_group = group(part, split) if split > 1 else None
            found = mask(dropout(group(rank, 2), tensor_group), length=16 // split)
            assert torch.equal(found, expected[part])


def test_without_keys_nothing_is_dropped_silently() -> None:
    others = [torch.zeros(3, dtype=torch.int64), torch.zeros(2)]
    for given in (None, AttentionContext(), *(AttentionContext(dropout_keys_b=keys_b) for keys_b in others)):
        with pytest.raises(ValueError, match=r"needs the keys|dropout_keys_b must be int64 \[2\]"):
            dropout(group())(torch.ones(32, 2, 24), given)


def test_without_dropout_nothing_of_it_exists(groups: Groups) -> None:
    """So it costs nothing: the layers are Megatron-Core's own, and no keys are made for them."""
    layers = {}
    for rate in (0.0, 0.1):
        built = unwrapped(build_model(dataclasses.replace(MODEL, hidden_dropout=rate), groups, precision="fp32"))
        layers[rate] = {type(layer) for layer in built.decoder.layers}
        assert (built.embedding_dropout is None) == (rate == 0.0)
    assert layers == {0.0: {QwenLayer}, 0.1: {DropoutLayer}}
