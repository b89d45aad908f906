"""A layer's way of its own for new tokens of cached texts: it is what the modules within would do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from qwen_megatron.inference.cache import CacheRows, KeyValueCache
from qwen_megatron.model import layer as layer_module
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.layer import QwenLayer
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups
from qwen_megatron.platforms import activations, few_rows
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of, tiny_config

LENGTH, PROMPT = 40, 21
KINDS: dict[str, dict[str, Any]] = {
    "grouped queries": {"num_query_groups": 2},
    "qwen3": {"num_query_groups": 2, "qk_layernorm": True, "add_qkv_bias": False, "kv_channels": 24},
    "logn": {"use_logn_attn": True, "seq_length": 16},
    "dynamic ntk": {"use_dynamic_ntk": True, "seq_length": 16},
    "dropout in training": {"hidden_dropout": 0.1},
}


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    with groups_of() as groups:
        yield groups


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step that is taken in one call; on any processor."""
    rows: list[int] = []
    step = layer_module.layer_step

    def counting(hidden_bh: torch.Tensor, *args: Any, **others: Any) -> torch.Tensor:
        rows.append(len(hidden_bh))
        return step(hidden_bh, *args, **others)

    monkeypatch.setattr(layer_module, "layer_step", counting)
    monkeypatch.setattr(activations, "IS_FAST", True)
    monkeypatch.setattr(few_rows, "IS_FAST", True)
    return rows


def model_of(groups: Groups, precision: str = "fp32", **changed: Any) -> QwenModel:
    """In evaluation mode, with norms and biases that have a say."""
    config = dataclasses.replace(tiny_config().model, **changed)
    model = unwrapped(build_model(config, groups, precision=precision, seed=3)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                middle = 1.0 if "norm" in name else 0.0
                parameter.copy_(middle + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def layers_of(model: QwenModel) -> list[QwenLayer]:
    return list(model.decoder.layers)


@torch.inference_mode()
def decoded(model: QwenModel, prompts: tuple[int, ...], steps: int = 5) -> tuple[torch.Tensor, KeyValueCache]:
    """Logits [b, steps, v] of tokens after prompts of these lengths, which stand in the cache behind another row."""
    rows = len(prompts)
    tokens_bs = torch.randint(0, 160, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    cache = KeyValueCache()
    model(tokens_bs[:1], None, AttentionContext(cache=CacheRows(cache, 0), text_lengths=(LENGTH,)))
    beside = CacheRows(cache, 1)
    model(tokens_bs[:, :PROMPT], None, AttentionContext(cache=beside, text_lengths=(PROMPT,) * rows))
    found = []
    for number in range(steps):
        offsets = tuple(length + number for length in prompts)
        news_bs = torch.stack([tokens_bs[row, offset] for row, offset in enumerate(offsets)])[:, None]
        context = AttentionContext(cache=beside, offsets=offsets, text_lengths=(PROMPT,) * rows)
        found.append(model(news_bs, None, context))
    return torch.cat(found, dim=1), cache


@torch.inference_mode()
def by_modules(model: QwenModel, prompts: tuple[int, ...]) -> tuple[torch.Tensor, KeyValueCache]:
    """The same with somebody who looks at a module of each layer."""
    handles = [layer.mlp.register_forward_hook(lambda *_: None) for layer in layers_of(model)]
    try:
        return decoded(model, prompts)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_call_gives_what_the_modules_give(groups: Groups, counted: list[int], precision: str, kind: str) -> None:
    model = model_of(groups, precision, **KINDS[kind])
    for prompts in ((PROMPT,), (PROMPT,) * 2, (PROMPT, 7, 12), tuple(range(5, 5 + few_rows.MOST_ROWS))):
        expected, expected_cache = by_modules(model, prompts)
        assert not counted
        found, cache = decoded(model, prompts)
        assert counted == [len(prompts)] * 5 * len(layers_of(model))
        counted.clear()
        # The same roundings at the same places; sums are taken in the same order but for the compiler's choice.
        tolerance = 2e-5 if precision == "fp32" else 2e-2
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        for number, tensors in cache.layers.items():
            for ours, theirs in zip(tensors, expected_cache.layers[number], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_windows(groups: Groups, counted: list[int]) -> None:
    model = model_of(groups, num_query_groups=2)
    without, _ = decoded(model, (PROMPT, 9))
    for number, layer in enumerate(layers_of(model)):
        layer.self_attention.core_attention.window = 6 + number
    found, _ = decoded(model, (PROMPT, 9))
    assert counted
    expected, _ = by_modules(model, (PROMPT, 9))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert not torch.allclose(found, without, atol=1e-3)


def test_tokens_one_by_one_give_the_logits_of_the_whole(groups: Groups, counted: list[int]) -> None:
    model = model_of(groups, num_query_groups=2)
    tokens_bs = torch.randint(0, 160, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(tokens_bs, None)
        cache = KeyValueCache()
        found = [
            model(tokens_bs[:, at : at + 1], None, AttentionContext(cache=cache, offsets=(at, at)))
            for at in range(LENGTH)
        ]
    assert len(counted) == LENGTH * len(layers_of(model))
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=2e-5)


def test_threads_change_no_bit(groups: Groups) -> None:
    model = model_of(groups, "bf16", num_query_groups=2)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            # The prompts alone are torch's, whose sums threads may change.
            with torch.inference_mode():
                cache, logits = KeyValueCache(), []
                for at in range(8):
                    context = AttentionContext(cache=cache, offsets=(at,) * 3)
                    logits.append(model(torch.tensor([[3 + at], [7], [at]]), None, context))
                found.append(torch.cat(logits))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_weights_are_those_of_the_moment(groups: Groups, counted: list[int]) -> None:
    """Weights that are changed or exchanged between two steps."""
    model = model_of(groups)
    before, _ = decoded(model, (PROMPT,))
    with torch.no_grad():
        for layer in layers_of(model):
            layer.mlp.linear_fc2.weight.mul_(2.0)
            layer.self_attention.linear_proj.weight.data = layer.self_attention.linear_proj.weight * 0.5
    after, _ = decoded(model, (PROMPT,))
    assert counted
    expected, _ = by_modules(model, (PROMPT,))
    torch.testing.assert_close(after, expected, rtol=0, atol=2e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_what_is_left_to_the_modules(groups: Groups, counted: list[int]) -> None:
    model = model_of(groups)
    decoded(model, (5,) * (few_rows.MOST_ROWS + 1))
    one, two = torch.tensor([[5]]), torch.tensor([[5, 6]])
    with torch.inference_mode():
        model(one, None)
        model(two, None, AttentionContext(cache=KeyValueCache()))
    with torch.no_grad():
        model(one, None, AttentionContext(cache=KeyValueCache()))
    assert not counted
    with torch.inference_mode():
        model(one, None, AttentionContext(cache=KeyValueCache()))
        assert counted
        with pytest.raises(ValueError, match="holds 1 tokens a row, but token 2 came"):
            model(one, None, AttentionContext(cache=KeyValueCache(1), offsets=(1,)))


def plain_model(groups: Groups) -> QwenModel:
    config = dataclasses.replace(tiny_config().model, num_query_groups=2)
    return unwrapped(build_model(config, groups, precision="fp32", seed=3)).eval()


def steps_of_a_rank() -> tuple[int, torch.Tensor]:
    """Calls of a step on a rank of two, and its part of the logits."""
    with groups_of(2) as groups, mock.patch.object(layer_module, "layer_step") as step:
        logits, _ = decoded(plain_model(groups), (PROMPT, 9))
    return step.call_count, logits


def test_tensor_parallel_ranks_use_the_modules(ranks: RankPool, groups: Groups, counted: list[int]) -> None:
    (first_calls, first), (second_calls, second) = ranks.run(2, steps_of_a_rank)
    assert (first_calls, second_calls) == (0, 0)
    expected, _ = decoded(plain_model(groups), (PROMPT, 9))
    assert counted
    found = torch.cat((first, second), dim=-1)[..., : expected.size(-1)]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
