"""Leave for Transformer Engine's linears to add to fp32 gradients without NVIDIA apex, and what must not use it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import layers

from qwen_megatron.model.linear import ColumnLinear
from qwen_megatron.model.output_layer import OutputLayer
from qwen_megatron.parallel.rng import start_tracker
from qwen_megatron.platforms.shims.cuda import cuda_shims
from qwen_megatron.platforms.shims.registry import Rebind, applied
from tests.support.trainables import TinyTrainable, tiny_trainable

TARGET = "megatron.core.tensor_parallel.layers:_grad_accum_fusion_available"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine imports, apex does not."""
    extension = importlib.import_module("megatron.core.extensions.transformer_engine")
    optimizer = importlib.import_module("megatron.core.optimizer")
    monkeypatch.setattr(extension, "HAVE_TE", True)
    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", False)
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)


@pytest.fixture(scope="module")
def trainable() -> Iterator[TinyTrainable]:
    with tiny_trainable() as trainable:
        yield trainable


def the_shim() -> Rebind:
    (shim,) = cuda_shims()
    assert isinstance(shim, Rebind)
    assert shim.target == TARGET
    return shim


def test_it_is_there_with_the_engine_and_without_apex_alone(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = the_shim()
    assert shim.replacement is True
    assert "need no apex" in shim.reason
    assert shim.until == "Megatron-Core asks for apex where it is used"
    assert shim.line.startswith(f"{TARGET}: ")
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
    assert cuda_shims() == []
    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr("megatron.core.extensions.transformer_engine.HAVE_TE", False)
    assert cuda_shims() == []


def linear(kind: type, trainable: TinyTrainable) -> Any:
    """A layer of a configuration in which linears add the gradients of their weights themselves."""
    start_tracker(trainable.groups)
    config = dataclasses.replace(trainable.models[0].config, gradient_accumulation_fusion=True)
    options: dict[str, Any] = {"config": config, "init_method": torch.nn.init.ones_, "bias": False}
    return kind(8, 12, gather_output=False, tp_group=trainable.groups.tp, **options)


def test_without_it_the_output_layer_cannot_be_built(engine: None, trainable: TinyTrainable) -> None:
    with pytest.raises(RuntimeError, match="fused_weight_gradient_mlp_cuda"):
        linear(OutputLayer, trainable)
    assert not layers._grad_accum_fusion_available
    with applied(the_shim()):
        built = linear(OutputLayer, trainable)
        # Megatron-Core's own product needs apex all the same; only the layers' linears, which are the engine's, do not.
        assert linear(ColumnLinear, trainable).gradient_accumulation_fusion
    assert not layers._grad_accum_fusion_available
    assert not built.gradient_accumulation_fusion


def test_logits_and_their_gradient_do_without_apex(engine: None, trainable: TinyTrainable) -> None:
    with applied(the_shim()):
        built = linear(OutputLayer, trainable)
        hidden_sbh = torch.randn(3, 2, 8, requires_grad=True)
        logits_sbv, _ = built(hidden_sbh)
        logits_sbv.sum().backward()
    torch.testing.assert_close(logits_sbv, hidden_sbh.sum(-1, keepdim=True).expand(3, 2, 12))
    torch.testing.assert_close(built.weight.grad, hidden_sbh.detach().sum((0, 1)).expand(12, 8))
