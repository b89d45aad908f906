"""Memory by arithmetic, against what a model on this machine really holds, and the table of layouts made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from qwen_megatron.config.arithmetic.memory import rank_memory
from qwen_megatron.config.arithmetic.parameters import count_parameters
from qwen_megatron.config.load import load_config
from qwen_megatron.config.resolve import ResolvedConfig, resolve
from qwen_megatron.jobs.kinds.table import JOBS
from qwen_megatron.model.head_kinds import SCALAR
from tests.support.ranks import RankPool
from tests.support.trainables import (
    TINY,
    groups_of,
    leave_gradient,
    random_batches,
    take_step,
    tiny_built,
    tiny_config,
    tiny_trainable,
    weights_of,
)

ROOT = Path(__file__).parents[2]
BF16 = ("training.precision=bf16", "training.seq_length=128", "training.micro_batch_size=4")
TP_SP = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
KEYS = {
    "TP": "parallel.tensor_model_parallel_size",
    "PP": "parallel.pipeline_model_parallel_size",
    "VPP": "parallel.virtual_pipeline_model_parallel_size",
}


def state_bytes(overrides: tuple[str, ...]) -> tuple[int, int, int]:
    """Bytes of this rank's weights, gradients, and masters with moments."""
    with tiny_trainable(*overrides) as trainable:
        take_step(trainable, random_batches(trainable, 161))
        weights = sum(param.nbytes for model in trainable.models for param in model.parameters())
        gradients = sum(param.main_grad.nbytes for model in trainable.models for param in model.parameters())
        adam = trainable.optimizer.optimizer
        optimizer = sum(value.nbytes for state in adam.state.values() for value in state.values())
        if "training.precision=bf16" in overrides:
            optimizer += sum(param.nbytes for group in adam.param_groups for param in group["params"])
        return weights, gradients, optimizer


def saved_bytes(overrides: tuple[str, ...]) -> int:
    """Bytes that one micro-batch's forward pass keeps for its backward pass, weights left out."""
    with tiny_trainable(*overrides) as trainable:
        weights = {param.untyped_storage().data_ptr() for model in trainable.models for param in model.parameters()}
        kept: dict[int, int] = {}
        tensors = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
                tensors.append(tensor)  # Its address must not be used again.
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            leave_gradient(trainable, random_batches(trainable, 161), num_microbatches=1)
        return sum(kept.values())


def planned(world_size: int, overrides: tuple[str, ...]) -> ResolvedConfig:
    return resolve(load_config(None, [*TINY, *overrides]), world_size)


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (2, ()),
        (1, ("training.precision=bf16",)),
        (2, ("training.precision=bf16", "parallel.tensor_model_parallel_size=2")),
        (2, ("parallel.pipeline_model_parallel_size=2",)),
    ],
    ids=["dp2-fp32", "bf16", "tp2-bf16", "pp2-fp32"],
)
def test_state_is_what_the_arithmetic_says(ranks: RankPool, world_size: int, overrides: tuple[str, ...]) -> None:
    stages = rank_memory(planned(world_size, overrides))
    for rank, held in enumerate(ranks.run(world_size, state_bytes, overrides=overrides)):
        stage = stages[rank if len(stages) > 1 else 0]
        # Megatron-Core pads the pieces of the optimizer's state.
        assert held == pytest.approx((stage.weights, stage.gradients, stage.optimizer), rel=1e-3)


@pytest.mark.parametrize(
    "layout", [(), ("parallel.tensor_model_parallel_size=2",), TP_SP], ids=["one process", "tp2", "tp2-sp"]
)
def test_activations_grow_as_the_arithmetic_says(ranks: RankPool, layout: tuple[str, ...]) -> None:
    """What torch's kernels keep on the CPU, layer for layer."""
    measured, counted = [], []
    world_size = 2 if layout else 1
    for layers in (4, 8):
        overrides = (*BF16, f"model.num_layers={layers}", *layout)
        measured.append(ranks.run(world_size, saved_bytes, overrides=overrides)[0])
        counted.append(rank_memory(planned(world_size, overrides))[0].activations)
    ratio = (measured[1] - measured[0]) / (counted[1] - counted[0])
    assert ratio == pytest.approx(1.0, rel=0.01)


# The table of layouts

ROW = re.compile(r"^\| \[(?P<recipe>[a-z0-9.-]+\.yaml)\]")


def table_rows() -> list[list[str]]:
    """Cells of the rows of examples/README.md that name a recipe."""
    lines = (ROOT / "examples" / "README.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if ROW.match(line)]


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: f"{row[0].partition(']')[0][1:]}-{row[1]}")
def test_every_layout_of_the_table_resolves_and_fits(row: list[str]) -> None:
    link, processes, layout, dp, micro, steps, memory, bubble, status = row
    recipe = ROOT / "examples" / link.partition("]")[0][1:]
    sizes = {part.rstrip("0123456789"): int(part.lstrip("TPVCDS")) for part in layout.split(" x ") if part != "SP"}
    overrides = [f"{KEYS[axis]}={size}" for axis, size in sizes.items()]
    overrides += [f"training.micro_batch_size={micro}", f"parallel.sequence_parallel={str('SP' in layout).lower()}"]
    resolved = resolve(load_config(recipe, overrides), int(processes))
    assert (resolved.data_parallel_size, resolved.num_microbatches) == (int(dp), int(steps))
    largest = max(stage.total for stage in rank_memory(resolved)) / 2**30
    assert f"{largest:.1f}" == memory
    stages, pieces = sizes.get("PP", 1), sizes.get("VPP", 1)
    idle = (stages - 1) / (pieces * resolved.num_microbatches + stages - 1)
    assert f"{idle:.1%}" == bubble
    assert status == ("tested on CPUs" if "demo" in link else "computed")
    if "demo" not in link:
        assert largest < 64, "80 GB less the device's context, the collectives' buffers and fragmentation"
        assert resolved.tokens_per_step == 4 * 1024 * 1024


def test_the_table_has_every_size_and_count() -> None:
    found = {(row[0].partition("]")[0][1:], int(row[1])) for row in table_rows()}
    for size in ("0.5b", "1.8b", "7b", "14b"):
        assert {(f"qwen-{size}.yaml", count) for count in (8, 16, 32, 64, 128)} <= found
    assert {("qwen-72b.yaml", count) for count in (32, 64, 128, 256, 512, 1024)} <= found


def test_a_scalar_head_has_no_vocabulary_and_a_pair_is_two_sequences() -> None:
    settings = load_config(None, ["model.preset=qwen-7b", "training.seq_length=2048", "training.global_batch_size=64"])
    language, scalar = resolve(settings), resolve(settings, shape=JOBS["reward"].shape)
    model = language.model
    matrix = model.vocab_size * model.hidden_size
    assert language.num_parameters - scalar.num_parameters == matrix - model.hidden_size
    assert scalar.num_parameters_per_rank == (scalar.num_parameters,)
    assert language.flops_per_token - scalar.flops_per_token == 6.0 * (matrix - model.hidden_size)
    assert scalar.tokens_per_step == 2 * language.tokens_per_step
    (expected,), (found,) = rank_memory(language), rank_memory(scalar)
    # All but the table of angles.
    assert found.activations == pytest.approx(2 * expected.activations, rel=1e-3)
    # The last hidden states of both sequences, in bf16 three times and in fp32 twice.
    assert found.loss == 2 * 2048 * model.hidden_size * (3 * 2 + 2 * 4)
    split = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
    stages = resolve(load_config(None, ["model.preset=qwen-7b", *split]), shape=JOBS["reward"].shape)
    first, last = stages.num_parameters_per_rank
    assert first - last == matrix // 2 - 2 * model.hidden_size, "embedding; last norm and a head on every rank"


def test_the_parameters_of_a_scalar_head_are_those_that_are_built() -> None:
    with groups_of() as groups:
        for tied in ("true", "false"):
            config = tiny_config(f"model.tie_word_embeddings={tied}")
            built = tiny_built(config, groups, head=SCALAR)
            counted = count_parameters(config.model, has_scalar_head=True)
            assert counted == sum(weight.numel() for weight in weights_of(built).values())
