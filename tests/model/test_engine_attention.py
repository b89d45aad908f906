"""Documents and dropout through Transformer Engine's interface; its attention is a stand-in of plain torch here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.inference.loading import single_process
from qwen_megatron.model import builder
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.builder import build_model, unwrapped
from qwen_megatron.model.dropout import row_keys
from qwen_megatron.model.engine_attention import EngineAttention
from qwen_megatron.model.heads import HeadRequest, Output
from qwen_megatron.model.layer_spec import TORCH
from qwen_megatron.model.packed import Documents, packed, unpacked
from qwen_megatron.model.qwen_model import QwenModel
from qwen_megatron.model.torch_attention import TorchAttention
from qwen_megatron.parallel.groups import Groups
from tests.support.ranks import RankPool
from tests.support.trainables import random_batches, take_step, tiny_trainable

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=50,
    seq_length=64,
    implementation="torch",
)
IDS_BS = torch.tensor([[0] * 4 + [1] * 7 + [2], [5] * 12])
TOKENS_BS = (torch.arange(24).reshape(2, 12) * 5) % 50


class StandInForTransformerEngine(torch.nn.Module):
    """The interface of Megatron-Core's TEDotProductAttention for causal attention, computed with plain torch."""

    calls: list[PackedSeqParams | None]

    def __init__(self, config: Any, pg_collection: Any, layer_number: int, **others: Any):
        super().__init__()
        self.dropout = config.attention_dropout
        self.calls = []

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        self.calls.append(packed_seq_params)
        assert attn_mask_type == AttnMaskType.causal
        if packed_seq_params is None:
            return self.dropped(
                torch.cat([self.causal(*(x[:, i] for x in (query, key, value)))[:, None] for i in (0, 1)], 1)
            )
        assert packed_seq_params.qkv_format == "thd"
        bounds = packed_seq_params.cu_seqlens_q
        assert bounds is packed_seq_params.cu_seqlens_kv
        assert bounds.dtype == torch.int32
        assert packed_seq_params.max_seqlen_q == packed_seq_params.max_seqlen_kv == int(bounds.diff().max())
        assert query.dim() == 3
        pieces = [self.causal(query[a:b], key[a:b], value[a:b]) for a, b in itertools.pairwise(bounds)]
        return self.dropped(torch.cat(pieces))

    def causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = [x.transpose(0, 1) for x in (query, key, value)]
        output = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        return output.transpose(0, 1).flatten(1)

    def dropped(self, output: torch.Tensor) -> torch.Tensor:
        """Random numbers from the generator that Transformer Engine enters."""
        if not (self.training and self.dropout):
            return output
        with get_cuda_rng_tracker().fork():
            return torch.nn.functional.dropout(output, self.dropout)


@pytest.fixture(scope="module")
def groups() -> Iterator[Groups]:
    with single_process("cpu") as groups:
        yield groups


def built(groups: Groups, monkeypatch: pytest.MonkeyPatch, kernel: type | None, **options: Any) -> QwenModel:
    """The model on the torch kernels, or with its attention behind Transformer Engine's interface."""
    kernels = TORCH
    if kernel is not None:
        attention = functools.partial(EngineAttention, kernel=kernel)
        takes = frozenset({"documents", "dropout"})
        kernels = dataclasses.replace(TORCH, attention=attention, attention_takes=takes)
    monkeypatch.setattr("qwen_megatron.model.builder.select_kernels", lambda *_: kernels)
    model = dataclasses.replace(MODEL, **options)
    return unwrapped(build_model(model, groups, precision="fp32", seed=5))


def losses(model: QwenModel, context: AttentionContext) -> torch.Tensor:
    request = HeadRequest(output=Output.TOKEN_LOSSES, labels_bs=TOKENS_BS.roll(-1, dims=1))
    return model(TOKENS_BS, TOKENS_BS, context, request)


def test_boundaries_count_all_rows() -> None:
    documents = Documents.of(IDS_BS)
    assert documents.lengths == ((4, 7, 1), (12,))
    assert documents.boundaries.tolist() == [0, 4, 11, 12, 24]
    assert documents.boundaries.dtype == torch.int32
    assert documents.longest == 12


@pytest.mark.parametrize("rows", [1, 3])
def test_packing_puts_row_after_row_and_back(rows: int) -> None:
    x_sbnd = torch.randn(5, rows, 2, 3)
    assert torch.equal(packed(x_sbnd), torch.cat([x_sbnd[:, row] for row in range(rows)]))
    assert torch.equal(unpacked(packed(x_sbnd), rows), x_sbnd.flatten(2))


@pytest.mark.parametrize("ids_bs", [IDS_BS, None], ids=["documents", "whole"])
def test_losses_and_gradients_are_the_torch_kernels(
    ids_bs: torch.Tensor | None, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [built(groups, monkeypatch, kernel) for kernel in (None, StandInForTransformerEngine)]
    results = [losses(model, AttentionContext(document_ids_bs=ids_bs)) for model in models]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
    for result in results:
        result.square().sum().backward()
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("kernel", [None, StandInForTransformerEngine], ids=["torch", "engine"])
def test_documents_are_found_once_and_layers_read_nothing_back(
    kernel: type | None, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(groups, monkeypatch, kernel)
    context = AttentionContext(document_ids_bs=IDS_BS).moved(torch.clone)
    read: list[str] = []
    for name in ("tolist", "item", "unique_consecutive", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name, **__: read.append(name))
    losses(model, context)
    assert read == []
    if kernel is not None:
        used = [layer.self_attention.core_attention.kernel.kernel.calls[0] for layer in model.decoder.layers]
        assert used[0] is not None
        assert used[0] is used[1]


def test_dropout_repeats_with_its_keys_and_differs_between_layers(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(groups, monkeypatch, StandInForTransformerEngine, attention_dropout=0.3).train()

    def with_keys(step: int) -> torch.Tensor:
        torch.rand(3)
        return losses(model, AttentionContext(dropout_keys_b=row_keys(5, step, "ab"), document_ids_bs=IDS_BS))

    first, again, other = with_keys(1), with_keys(1), with_keys(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="needs the keys"):
        losses(model, AttentionContext())
    # The same input to both layers meets different masks.
    seen = [layer.self_attention.core_attention.kernel for layer in model.decoder.layers]
    query, key, value = torch.ones(12, 2, 4, 8), torch.ones(12, 2, 2, 8), torch.ones(12, 2, 2, 8)
    context = AttentionContext(dropout_keys_b=row_keys(5, 1, "ab"))
    outputs = [one(query, key, value, packed_seq_params=context) for one in seen]
    assert not torch.equal(outputs[0], outputs[1])


def test_documents_and_a_ring_are_refused(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(groups, monkeypatch, StandInForTransformerEngine)
    attention = model.decoder.layers[0].self_attention.core_attention.kernel

    class Two:
        def size(self) -> int:
            return 2

    attention.context_group = Two()
    query, key = torch.ones(6, 2, 4, 8), torch.ones(6, 2, 2, 8)
    with pytest.raises(ValueError, match=r"needs model\.implementation=torch"):
        attention(query, key, key, packed_seq_params=AttentionContext(document_ids_bs=IDS_BS))


def ring_job(overrides: list[str], behind: bool) -> tuple[float, float]:
    """Loss and gradient norm of a step on the torch kernels, or with their attention behind the engine's interface.

    They take a rank's slices of a sequence in the order that Transformer Engine's ring takes them.
    """
    original = builder.select_kernels
    attention = functools.partial(EngineAttention, kernel=TorchAttention)
    kernels = dataclasses.replace(TORCH, attention=attention, attention_takes=frozenset({"documents", "dropout"}))
    builder.select_kernels = lambda *_: kernels if behind else TORCH
    try:
        with tiny_trainable(*overrides) as trainable:
            result = take_step(trainable, random_batches(trainable, 161))
            return result.loss, result.grad_norm
    finally:
        builder.select_kernels = original


def test_a_ring_gets_the_slices_of_its_rank(ranks: RankPool) -> None:
    (expected,) = ranks.run(1, ring_job, overrides=[], behind=False)
    for measured in ranks.run(2, ring_job, overrides=["parallel.context_parallel_size=2"], behind=True):
        assert measured == pytest.approx(expected, rel=1e-6)


def test_torch_attention_takes_one_kernel_a_layer_where_there_is_one(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(groups, monkeypatch, None)
    context = AttentionContext(document_ids_bs=IDS_BS)
    expected = losses(model, context)
    calls: list[int] = []

    def stand_in(*arguments: Any) -> torch.Tensor:
        query, key, value, bounds, longest, scale = arguments
        assert (longest, scale) == (12, None)
        calls.append(len(bounds))
        one = StandInForTransformerEngine.causal
        pieces = [one(None, query[a:b], key[a:b], value[a:b]) for a, b in itertools.pairwise(bounds)]  # type: ignore[arg-type]
        return torch.cat(pieces)

    monkeypatch.setattr("qwen_megatron.model.torch_attention.has_packed_attention", lambda query: True)
    monkeypatch.setattr("qwen_megatron.model.torch_attention.packed_attention", stand_in)
    torch.testing.assert_close(losses(model, AttentionContext(document_ids_bs=IDS_BS)), expected, rtol=0, atol=1e-5)
    assert calls == [5, 5]
