"""Which kernels a layer gets, and under which names its parameters are saved."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.identity_op import IdentityOp

from qwen_megatron.errors import PlatformError
from qwen_megatron.model import layer_spec as module
from qwen_megatron.model.dropout import DropoutLayer
from qwen_megatron.model.layer import QwenLayer
from qwen_megatron.model.layer_spec import TORCH, Kernels, layer_spec, select_kernels
from qwen_megatron.model.norm import RmsNorm
from qwen_megatron.model.rotary import RotarySettings
from qwen_megatron.model.torch_attention import TorchAttention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROTARY = RotarySettings(base=10000.0, head_size=16, native_length=256, use_dynamic_ntk=False, use_logn_attn=False)
FUSED = Kernels(
    norm=RmsNorm,
    norm_is_fused=True,
    norm_linear=TORCH.norm_linear,
    linear=TORCH.linear,
    attention=TorchAttention,
    attention_takes=frozenset(),
)


@pytest.mark.parametrize(("implementation", "device"), [("torch", CPU), ("torch", CUDA), ("auto", CPU)])
@pytest.mark.parametrize("has_te", [False, True])
def test_torch_kernels_where_they_are_asked_for_or_nothing_else_runs(
    implementation: str, device: torch.device, has_te: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.te, "HAVE_TE", has_te)
    assert select_kernels(implementation, device) is TORCH


@pytest.mark.parametrize(
    ("has_te", "device", "why"),
    [(False, CUDA, "does not import"), (False, CPU, "does not import"), (True, CPU, "no kernels for the device cpu")],
)
def test_transformer_engine_is_refused_where_it_cannot_run(
    has_te: bool, device: torch.device, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.te, "HAVE_TE", has_te)
    with pytest.raises(PlatformError, match=f"model.implementation=transformer_engine: Transformer Engine .*{why}"):
        select_kernels("transformer_engine", device)


def test_fused_kernels_save_their_norm_under_the_name_of_the_one_that_stands_alone() -> None:
    """So a checkpoint of either implementation loads into the other."""
    alone = layer_spec(TORCH, ROTARY, hidden_dropout=0.0).submodules
    assert alone.input_layernorm is alone.pre_mlp_layernorm is RmsNorm
    assert alone.sharded_state_dict_keys_map == {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    fused = layer_spec(FUSED, ROTARY, hidden_dropout=0.0).submodules
    assert fused.input_layernorm is fused.pre_mlp_layernorm is IdentityOp
    assert fused.sharded_state_dict_keys_map == {}


def test_attention_knows_what_its_kernel_takes() -> None:
    for kernels in (TORCH, FUSED):
        core = layer_spec(kernels, ROTARY, hidden_dropout=0.0).submodules.self_attention.submodules.core_attention
        assert core.params["takes"] == kernels.attention_takes
        assert core.params["rotary"] is ROTARY
    assert TORCH.attention_takes == {"documents", "dropout", "cache", "windows"}


def test_dropout_is_only_there_if_it_is_asked_for() -> None:
    assert layer_spec(TORCH, ROTARY, hidden_dropout=0.0).module is QwenLayer
    spec = layer_spec(TORCH, ROTARY, hidden_dropout=0.1)
    assert (spec.module, spec.params) == (DropoutLayer, {"dropout": 0.1})
