"""Core attention against an explicit softmax."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from qwen_megatron.model.attention import QwenCoreAttention
from qwen_megatron.model.attention_context import AttentionContext
from qwen_megatron.model.dropout import row_keys
from qwen_megatron.model.rotary import RotarySettings, dynamic_ntk_base, logn_scale, rotary_table
from qwen_megatron.model.torch_attention import TorchAttention
from qwen_megatron.platforms.rotation import rotate

HEAD = 8
CPU = torch.device("cpu")

# What the modules ask of groups that do not split.
GROUPS: Any = SimpleNamespace(**dict.fromkeys(("cp", "tp"), SimpleNamespace(size=lambda: 1, rank=lambda: 0)))


def random_qkv(length: int, heads: int, groups: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length + heads)
    return [torch.randn(length, 2, count, HEAD, generator=generator).to(dtype) for count in (heads, groups, groups)]


def make_kernel(softmax_scale: float | None = None, dropout: float = 0.0) -> TorchAttention:
    config = SimpleNamespace(attention_dropout=dropout)
    return TorchAttention(config, 1, AttnMaskType.causal, "self", softmax_scale=softmax_scale, pg_collection=GROUPS)  # type: ignore[arg-type]


def oracle(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float = 1 / math.sqrt(HEAD)
) -> torch.Tensor:
    """Softmax over the keys up to each query, head by head, in fp64; query head i reads key group i * g // n."""
    query, key, value = query.double(), key.double(), value.double()
    length, batch, heads, _ = query.shape
    outputs = torch.empty_like(query)
    for row in range(batch):
        for head in range(heads):
            group = head * key.size(2) // heads
            for position in range(length):
                scores = key[: position + 1, row, group] @ query[position, row, head] * scale
                outputs[position, row, head] = scores.softmax(dim=0) @ value[: position + 1, row, group]
    return outputs.flatten(start_dim=2)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_kernel_equals_explicit_softmax(heads: int, groups: int) -> None:
    query, key, value = random_qkv(13, heads, groups)
    output = make_kernel()(query, key, value)
    assert output.shape == (13, 2, heads * HEAD)
    torch.testing.assert_close(output.double(), oracle(query, key, value), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
def test_kernel_gradients_equal_explicit_softmax(heads: int, groups: int) -> None:
    inputs = random_qkv(9, heads, groups)
    upstream = torch.randn(9, 2, heads * HEAD, generator=torch.Generator().manual_seed(5))
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    make_kernel()(*ours).backward(upstream)
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    oracle(*exact).backward(upstream.double())
    for tensor, reference in zip(ours, exact, strict=True):
        torch.testing.assert_close(tensor.grad.double(), reference.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [1, 4, 9, 30])
@pytest.mark.parametrize("groups", [4, 2])
def test_windows_equal_explicit_softmax(window: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax over the last keys up to each query; in one block of queries, and in several."""
    query, key, value = random_qkv(13, 4, groups)
    whole = make_kernel()(query, key, value, window=window)
    for position in range(13):
        seen = slice(max(0, position + 1 - window), position + 1)
        expected = oracle(query[seen], key[seen], value[seen])[-1]
        torch.testing.assert_close(whole[position].double(), expected, rtol=0, atol=1e-6)
    monkeypatch.setattr("qwen_megatron.model.torch_attention.BLOCK", 4)
    torch.testing.assert_close(make_kernel()(query, key, value, window=window), whole, rtol=0, atol=1e-6)


def test_given_softmax_scale_is_used() -> None:
    query, key, value = random_qkv(6, 2, 2)
    output = make_kernel(softmax_scale=0.11)(query, key, value)
    torch.testing.assert_close(output.double(), oracle(query, key, value, scale=0.11), rtol=0, atol=1e-6)


def test_later_tokens_change_nothing_before_them() -> None:
    query, key, value = random_qkv(10, 2, 2)
    before = make_kernel()(query, key, value)
    for tensor in (query, key, value):
        tensor[7:] = 100.0
    assert torch.equal(make_kernel()(query, key, value)[:7], before[:7])


def test_kernel_keeps_bf16() -> None:
    query, key, value = random_qkv(12, 2, 2, torch.bfloat16)
    output = make_kernel()(query, key, value)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), oracle(query, key, value), rtol=0, atol=2e-2)


def test_dropout_is_for_training_only_and_belongs_to_its_keys() -> None:
    query, key, value = random_qkv(12, 2, 2)
    kernel = make_kernel(dropout=0.5).train()
    one, other = (AttentionContext(dropout_keys_b=row_keys(5, step, "ab")) for step in (1, 2))

    def output(context: AttentionContext) -> torch.Tensor:
        return kernel(query, key, value, packed_seq_params=context)

    assert torch.equal(output(one), output(one))
    assert not torch.equal(output(one), output(other))
    with pytest.raises(ValueError, match="needs the keys"):
        kernel(query, key, value)
    torch.testing.assert_close(kernel.eval()(query, key, value).double(), oracle(query, key, value), rtol=0, atol=1e-6)


def test_dropout_falls_on_probabilities_and_keeps_their_mean() -> None:
    """Against an explicit mask, and over many samples against none."""
    query, key, value = (tensor[:, :1] for tensor in random_qkv(12, 2, 2))
    kernel = make_kernel(dropout=0.25).train()
    context = AttentionContext(dropout_keys_b=row_keys(5, 1, "a"))
    # Values that tell which keys were kept: the output is the row of probabilities itself.
    eye = torch.eye(12)[:, None, None].expand(12, 1, 2, 12)
    shares = kernel(query, key, eye, packed_seq_params=context).view(12, 2, 12)
    whole = make_kernel()(query, key, eye).view(12, 2, 12)
    dropped = (shares == 0) & (whole > 0)
    torch.testing.assert_close(shares[~dropped], whole[~dropped] / 0.75)
    assert 0.1 < dropped.sum() / (whole > 0).sum() < 0.4
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    contexts = [AttentionContext(dropout_keys_b=row_keys(5, 1, [number])) for number in range(2000)]
    mean = torch.stack([kernel(query, key, value, packed_seq_params=one) for one in contexts]).mean(dim=0)
    torch.testing.assert_close(mean, make_kernel()(query, key, value), rtol=0, atol=0.06)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("attention bias", {"attention_bias": torch.zeros(1)}),
        ("attention mask", {"attention_mask": torch.ones(1, 1, 4, 4, dtype=torch.bool)}),
        ("an AttentionContext, not as PackedSeqParams", {"packed_seq_params": PackedSeqParams(qkv_format="thd")}),
    ],
)
def test_kernel_refuses_what_it_would_ignore(name: str, argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=name):
        make_kernel()(*random_qkv(4, 2, 2), **argument)


@pytest.mark.parametrize("mask_type", [AttnMaskType.no_mask, AttnMaskType.padding, AttnMaskType.padding_causal])
def test_kernel_refuses_masks_that_are_not_causal(mask_type: AttnMaskType) -> None:
    with pytest.raises(ValueError, match=mask_type.name):
        make_kernel()(*random_qkv(4, 2, 2), attn_mask_type=mask_type)


def test_kernel_refuses_queries_and_keys_of_different_length() -> None:
    """torch's causal mask would align the first query with the first key: wrong for keys of earlier tokens."""
    query, key, value = random_qkv(6, 2, 2)
    with pytest.raises(ValueError, match="2 queries and 6 keys"):
        make_kernel()(query[4:], key, value)


def make_core(native_length: int, **stretching: bool) -> QwenCoreAttention:
    config = TransformerConfig(num_layers=1, hidden_size=2 * HEAD, num_attention_heads=2, attention_dropout=0.0)
    rotary = RotarySettings(head_size=HEAD, base=10000.0, native_length=native_length, **stretching)
    return QwenCoreAttention(
        config,
        kernel=TorchAttention,
        takes=frozenset({"documents", "dropout", "cache"}),
        rotary=rotary,
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        pg_collection=GROUPS,
    )


def test_core_does_not_hide_documents_from_a_kernel_that_knows_none() -> None:
    core = make_core(16)
    core.takes = frozenset()
    ids_bs = torch.zeros(2, 16, dtype=torch.int64)
    with pytest.raises(ValueError, match="TorchAttention would ignore"):
        core(*random_qkv(16, 2, 2), packed_seq_params=AttentionContext(document_ids_bs=ids_bs))
    query, key, value = random_qkv(16, 2, 2)
    keys = AttentionContext(dropout_keys_b=row_keys(5, 1, "ab"))
    assert torch.equal(core(query, key, value, packed_seq_params=keys), core(query, key, value))


def expected_core(
    base: float, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: Any = 1.0
) -> torch.Tensor:
    table = rotary_table(base, HEAD, query.size(0), CPU)
    return oracle(rotate(query, *table) * scale, rotate(key, *table), value)


@pytest.mark.parametrize("training", [False, True])
def test_core_rotates_queries_and_keys(training: bool) -> None:
    query, key, value = random_qkv(16, 2, 1)
    core = make_core(16, use_dynamic_ntk=True, use_logn_attn=True).train(training)
    torch.testing.assert_close(
        core(query, key, value).double(), expected_core(10000.0, query, key, value), rtol=0, atol=2e-6
    )


def test_core_stretches_at_evaluation_only() -> None:
    query, key, value = random_qkv(24, 2, 2)
    core = make_core(16, use_dynamic_ntk=True, use_logn_attn=True)
    plain = expected_core(10000.0, query, key, value)
    torch.testing.assert_close(core.train()(query, key, value).double(), plain, rtol=0, atol=2e-6)
    base = dynamic_ntk_base(core.rotary, 24)
    stretched = expected_core(base, query, key, value, logn_scale(core.rotary, 24, CPU))
    torch.testing.assert_close(core.eval()(query, key, value).double(), stretched, rtol=0, atol=2e-6)
    assert (stretched - plain).abs().max() > 0.1


@pytest.mark.parametrize(("ntk", "logn"), [(True, False), (False, True), (False, False)])
def test_each_stretching_stands_alone(ntk: bool, logn: bool) -> None:
    query, key, value = random_qkv(24, 2, 2)
    core = make_core(16, use_dynamic_ntk=ntk, use_logn_attn=logn).eval()
    base = dynamic_ntk_base(core.rotary, 24) if ntk else 10000.0
    scale = logn_scale(core.rotary, 24, CPU) if logn else 1.0
    torch.testing.assert_close(
        core(query, key, value).double(), expected_core(base, query, key, value, scale), rtol=0, atol=2e-6
    )
