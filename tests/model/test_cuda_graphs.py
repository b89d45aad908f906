"""Layers under Megatron-Core's recorder of CUDA graphs, on the CPU: what is recorded, in which order, and when it fits.

The recorder itself is Megatron-Core's; a graph that is launched again is the layer called again here. What a GPU's
capture would refuse inside a layer cannot be seen so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.transformer import cuda_graphs

from qwen_megatron.model import builder, layer_spec
from qwen_megatron.model.attention_context import AttentionContext
from tests.support.trainables import (
    TinyTrainable,
    held_out_loss,
    parameter_bytes,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
)

VOCAB = 161


class Instead:
    """A module with some names of its own."""

    def __init__(self, module: Any, **names: Any):
        self.__dict__.update(names, module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class Recorded:
    """What Megatron-Core asked to be captured, in order: layer and direction."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, str]] = []
        self.launches = 0


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """Megatron-Core's recorder on a machine without GPUs."""
    record = Recorded()
    cuda = Instead(
        torch.cuda,
        get_device_capability=lambda: (9, 0),
        graph_pool_handle=object,
        Stream=object,
        set_stream=lambda stream: None,
        default_stream=object,
        memory_stats=lambda: dict.fromkeys(("allocated_bytes.all.current", "reserved_bytes.all.current"), 0),
        empty_cache=lambda: None,
    )
    runner = cuda_graphs._CudaGraphRunner

    def captured(which: str) -> Any:
        return lambda self, *_, **__: record.captured.append((self.base_module.layer_number, which))

    def launched(self: Any, is_first_microbatch: bool, args: Any, kwargs: Any) -> torch.Tensor:
        assert self.get_mismatch_errors(args, kwargs) == []
        record.launches += 1
        first, *rest = self.func(*args, **kwargs)
        return (cuda_graphs._CudagraphRecordNode.apply(self, first), *rest)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(cuda_graphs, "torch", Instead(torch, cuda=cuda))
    monkeypatch.setattr(cuda_graphs, "get_cuda_rng_tracker", lambda: Instead(None, is_inference_rng_tracker=True))
    monkeypatch.setattr(runner, "create_fwd_graph", captured("forward"))
    monkeypatch.setattr(runner, "create_bwd_graph", captured("backward"))
    monkeypatch.setattr(runner, "replay_graph_capture", launched)
    kernels = dataclasses.replace(layer_spec.TORCH, offers=frozenset({"parallel.cuda_graph_impl"}))
    monkeypatch.setattr(builder, "select_kernels", lambda *_: kernels)
    yield record
    cuda_graphs.delete_cuda_graphs()


def graphed(plain: TinyTrainable) -> TinyTrainable:
    """The same model with its layers recorded; the rules would refuse it on the CPU."""
    config = tiny_config()
    parallel = dataclasses.replace(config.parallel, cuda_graph_impl="local")
    return tiny_built(dataclasses.replace(config, parallel=parallel), plain.groups)


def test_steps_and_evaluations_launch_what_the_first_step_recorded(recorded: Recorded) -> None:
    with tiny_trainable() as plain:
        trainable = graphed(plain)
        layers = plain.model.num_layers
        batches = [random_batches(plain, VOCAB, seed=3) for _ in range(2)]
        for step in (1, 2):
            results = [take_step(one, b, step=step) for one, b in zip((plain, trainable), batches, strict=True)]
            assert results[0] == results[1]
            # One graph a layer and direction serves all micro-batches and steps.
            forward = [(layer, "forward") for layer in range(1, layers + 1)]
            assert recorded.captured == forward + [(layer, "backward") for layer in range(layers, 0, -1)]
            assert recorded.launches == (step - 1) * layers * trainable.num_microbatches
            held = [held_out_loss(one, random_batches(one, VOCAB, seed=9), 3) for one in (plain, trainable)]
            assert held[0] == held[1]
            recorded.launches -= layers * 3
        assert parameter_bytes(plain) == parameter_bytes(trainable)
        # Checkpoints know nothing of it.
        names = [set(one.models[0].sharded_state_dict()) for one in (plain, trainable)]
        assert names[0] == names[1]


def test_an_evaluation_before_the_first_step_records_nothing(recorded: Recorded) -> None:
    with tiny_trainable() as plain:
        trainable = graphed(plain)
        assert held_out_loss(trainable, random_batches(trainable, VOCAB), 2) > 0
        assert recorded.captured == []
        take_step(trainable, random_batches(trainable, VOCAB))
        assert recorded.captured != []


def test_documents_do_not_fit_a_recorded_layer(recorded: Recorded) -> None:
    """Why they are refused: what a layer gets to know of a micro-batch is no argument of a graph."""
    with tiny_trainable() as plain:
        trainable = graphed(plain)
        batch = next(random_batches(trainable, VOCAB))
        context = AttentionContext(document_ids_bs=torch.zeros_like(batch.tokens_bs))
        with pytest.raises((ValueError, AssertionError)):
            trainable.models[0].train()(batch.tokens_bs, None, context)
