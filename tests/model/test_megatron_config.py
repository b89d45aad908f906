"""What our settings become in Megatron-Core's configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen_megatron.config.sections.model import ModelConfig
from qwen_megatron.errors import PlatformError
from qwen_megatron.model.builder import build_model
from qwen_megatron.model.megatron_config import transformer_config
from qwen_megatron.model.user_buffers import start_user_buffers
from qwen_megatron.parallel.groups import Groups

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=50,
    seq_length=64,
    implementation="torch",
)


def config_of(groups: Groups, **options: Any) -> Any:
    return transformer_config(MODEL, groups, precision="bf16", **options)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_fp8_recipes_are_megatrons(recipe: str, groups: Groups) -> None:
    config = config_of(groups, fp8=recipe)
    assert (config.fp8, config.fp8_recipe) == ("hybrid", recipe)
    # Weights stay in bf16: their FP8 copies are made once for all micro-batches of a step, by Transformer Engine.
    assert not config.fp8_param
    assert config_of(groups).fp8 is None


def test_outer_layers_may_stay_in_bf16(groups: Groups) -> None:
    config = config_of(groups, fp8="tensorwise", fp8_first_last_layers_bf16=True)
    assert config.first_last_layers_bf16
    assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (1, 1)


def test_fp8_without_kernels_for_it_is_refused(groups: Groups) -> None:
    with pytest.raises(PlatformError, match=r"training\.fp8=delayed: only Transformer Engine's kernels"):
        build_model(MODEL, groups, precision="bf16", fp8="delayed")


def test_graphs_are_of_whole_layers_as_megatron_makes_them(groups: Groups) -> None:
    config = config_of(groups, cuda_graph_impl="local")
    assert (config.cuda_graph_impl, config.cuda_graph_scope) == ("local", [])
    # Megatron-Core has checked it against the rest; what our rules refuse of these, it refuses too.
    with pytest.raises(AssertionError, match="full recompute"):
        config_of(groups, cuda_graph_impl="local", recompute="full")
    assert config_of(groups).cuda_graph_impl == "none"


def test_tensor_overlap_is_passed_on(groups: Groups) -> None:
    config = config_of(groups, tp_comm_overlap=True)
    assert config.tp_comm_overlap
    assert (config.tp_comm_overlap_ag, config.tp_comm_overlap_rs, config.tp_comm_bulk_dgrad) == (True, True, True)
    assert not config_of(groups).tp_comm_overlap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda_graph_impl": "local"}, r"parallel\.cuda_graph_impl=local: only .* parallel\.cuda_graph_impl=none"),
        ({"tp_comm_overlap": True}, r"parallel\.tp_comm_overlap=true: only .* parallel\.tp_comm_overlap=false"),
    ],
)
def test_what_only_the_engine_does_is_refused_without_it(options: dict[str, Any], message: str, groups: Groups) -> None:
    with pytest.raises(PlatformError, match=message):
        build_model(MODEL, groups, precision="bf16", **options)


class UserBuffers:
    """A stand-in for Transformer Engine's module as far as buffers are asked of it."""

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.made: list[dict[str, Any]] = []
        self.UserBufferQuantizationMode = SimpleNamespace(FP8="fp8", NONE="none")

    def initialize_ub(self, **arguments: Any) -> None:
        if self.error is not None:
            raise self.error
        self.made.append(arguments)


def start(monkeypatch: pytest.MonkeyPatch, base: UserBuffers, **options: Any) -> None:
    start_user_buffers.cache_clear()
    monkeypatch.setattr("qwen_megatron.model.user_buffers.importlib.import_module", lambda name: base)
    modes = {"fp8": False, "outer_layers_bf16": False, **options}
    for _ in range(2):
        start_user_buffers(4096, 32, 2, torch.bfloat16, **modes)
    start_user_buffers.cache_clear()


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        ({}, ["none"]),
        ({"fp8": True}, ["fp8"]),
        ({"fp8": True, "outer_layers_bf16": True}, ["fp8", "none"]),
    ],
)
def test_user_buffers_are_made_once_a_process(
    options: dict[str, Any], modes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = UserBuffers()
    start(monkeypatch, base, **options)
    expected = {"shape": [4096, 32], "tp_size": 2, "quantization_modes": modes, "dtype": torch.bfloat16}
    assert base.made == [{**expected, "bootstrap_backend": "nccl"}]


def test_gpus_without_user_buffers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlatformError, match=r"tp_comm_overlap: .*no multicast.*NVLink; use false"):
        start(monkeypatch, UserBuffers(AssertionError("no multicast")))


def test_deterministic_and_fusion_are_passed_on(groups: Groups) -> None:
    config = config_of(groups, deterministic=True, fuses_weight_gradients=True)
    assert config.deterministic_mode
    assert config.gradient_accumulation_fusion
    plain = config_of(groups)
    assert not plain.deterministic_mode
    assert not plain.gradient_accumulation_fusion
    # The host does not wait after every transfer between pipeline stages.
    assert not plain.batch_p2p_sync
