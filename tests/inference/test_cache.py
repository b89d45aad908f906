"""The key/value cache: token by token the logits are those of the whole sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qwen_megatron.inference.cache import KeyValueCache
from qwen_megatron.inference.loading import logits
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.parallel.groups import Groups
from tests.support.ranks import RankPool
from tests.support.trainables import groups_of, tiny_config

LENGTH = 24


def tiny_model(groups: Groups, **changed: Any) -> QwenModel:
    """In evaluation mode, with grouped queries."""
    config = dataclasses.replace(tiny_config().model, num_query_groups=2, **changed)
    return unwrapped(build_model(config, groups, precision="fp32", seed=3)).eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 160, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def piecewise(model: QwenModel, pieces: list[int]) -> torch.Tensor:
    """Logits of the last stage, this rank's part of the vocabulary, computed piece after piece."""
    tokens_bs, cache = tokens(), KeyValueCache(LENGTH)
    offset, found = 0, []
    for size in pieces:
        piece_bs = tokens_bs[:, offset : offset + size]
        found.append(model(piece_bs, None, AttentionContext(cache=cache, offsets=(offset,) * 2)))
        offset += size
    return torch.cat(found, dim=1)


def cached_job(tensor_size: int, logn: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """This rank's logits of the whole sequence, and in three ways of cutting it."""
    with groups_of(tensor_size) as groups:
        model = tiny_model(groups, use_logn_attn=logn, seq_length=16)
        with torch.no_grad():
            whole = model(tokens(), None)
        cuts = ([1] * LENGTH, [10, *[1] * 14], [7, 9, 8])
        return whole, [piecewise(model, cut) for cut in cuts]


@pytest.mark.parametrize("logn", [False, True], ids=["plain", "logn beyond the native length"])
@pytest.mark.parametrize("tensor_size", [1, 2])
def test_pieces_give_the_logits_of_the_whole(ranks: RankPool, tensor_size: int, logn: bool) -> None:
    for whole, cut in ranks.run(tensor_size, cached_job, tensor_size=tensor_size, logn=logn):
        for found in cut:
            torch.testing.assert_close(found, whole, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    with groups_of() as groups:
        yield groups


@pytest.fixture(scope="module")
def model(groups: Groups) -> QwenModel:
    return tiny_model(groups)


def test_an_offset_goes_back(model: QwenModel) -> None:
    """A rejected token's keys are written over: speculative or restarted decoding."""
    with torch.no_grad():
        cache = KeyValueCache(LENGTH)
        tokens_bs = tokens()
        model(tokens_bs[:, :12], None, AttentionContext(cache=cache))
        model(tokens_bs[:, 3:6], None, AttentionContext(cache=cache, offsets=(12, 12)))
        again = model(tokens_bs[:, 12:15], None, AttentionContext(cache=cache, offsets=(12, 12)))
    torch.testing.assert_close(again, logits(model, tokens_bs[:, :15])[:, 12:], rtol=0, atol=2e-5)


def test_what_does_not_go_with_a_cache_is_refused(model: QwenModel) -> None:
    tokens_bs = tokens()
    ids_bs = torch.zeros_like(tokens_bs)
    with pytest.raises(ValueError, match="holds one document a row"):
        model(tokens_bs, None, AttentionContext(cache=KeyValueCache(LENGTH), document_ids_bs=ids_bs))
    with pytest.raises(ValueError, match="holds 8 tokens a row, but token 24 came"):
        model(tokens_bs, None, AttentionContext(cache=KeyValueCache(8)))
    with pytest.raises(ValueError, match=r"offsets=\(4,\): tokens before the first need a cache"):
        AttentionContext(offsets=(4,))
    model.train()
    try:
        with pytest.raises(ValueError, match="is for inference"):
            model(tokens_bs, None, AttentionContext(cache=KeyValueCache(LENGTH)))
    finally:
        model.eval()


def test_dynamic_ntk_is_refused_where_the_base_would_change(groups: Groups) -> None:
    built = tiny_model(groups, use_dynamic_ntk=True, seq_length=16)
    with torch.no_grad():
        cache = KeyValueCache(LENGTH)
        built(tokens()[:, :16], None, AttentionContext(cache=cache))
        with pytest.raises(ValueError, match="changes the base with the length"):
            built(tokens()[:, 16:17], None, AttentionContext(cache=cache, offsets=(16, 16)))
