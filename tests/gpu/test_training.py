"""Training on a GPU against the CPU, which transformers and fp64 oracles have checked: both kinds of kernels."""

from __future__ import annotations

import pytest

from tests.gpu.commands import (
    BF16,
    DETERMINISTIC,
    ENGINE,
    FP32,
    STEPS,
    TORCH,
    bits,
    command,
    losses,
    needs_engine,
    trained,
)

pytestmark = pytest.mark.gpu

CPU = "parallel.platform=cpu"
# Measured on an H200 at 9365f36: seven digits in fp32.
SAME = 1e-5
# bf16 against fp32 after eight steps, as on the CPU.
ROUNDED = 2e-2
both = pytest.mark.parametrize("kernels", [TORCH, pytest.param(ENGINE, marks=needs_engine)], ids=["torch", "engine"])


@both
def test_fp32_losses_are_the_cpus(kernels: str) -> None:
    assert losses(FP32, kernels) == pytest.approx(losses(FP32, CPU), rel=SAME)


@both
def test_bf16_losses_are_near(kernels: str) -> None:
    assert losses(BF16, kernels) == pytest.approx(losses(FP32, CPU), rel=ROUNDED)


@both
def test_masked_documents_give_the_cpus_losses(kernels: str) -> None:
    documents = "data.mask_documents=true"
    assert losses(FP32, kernels, documents) == pytest.approx(losses(FP32, CPU, documents), rel=SAME)


def test_dropout_masks_are_the_cpus() -> None:
    dropout = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1", TORCH)
    assert losses(FP32, *dropout) == pytest.approx(losses(FP32, CPU, *dropout), rel=SAME)


@both
def test_a_resume_is_bitwise(kernels: str) -> None:
    settings = (BF16, kernels, DETERMINISTIC)
    half, name = STEPS // 2, f"halves-{kernels[-6:]}"
    trained(*settings, f"training.exit_iter={half}", name=name)
    assert bits(*settings, name=name) == bits(*settings)


@both
def test_deterministic_repeats(kernels: str) -> None:
    settings = (BF16, kernels, DETERMINISTIC, "model.hidden_dropout=0.1")
    assert bits(*settings, name=f"one-{kernels[-6:]}") == bits(*settings, name=f"other-{kernels[-6:]}")


@needs_engine
@pytest.mark.parametrize(("first", "then"), [(TORCH, ENGINE), (ENGINE, TORCH)], ids=["to engine", "to torch"])
def test_a_run_goes_on_with_the_other_kernels(first: str, then: str) -> None:
    name = f"from-{first[-6:]}"
    trained(FP32, first, f"training.exit_iter={STEPS // 2}", name=name)
    assert losses(FP32, then, name=name) == pytest.approx(losses(FP32, CPU), rel=SAME)


@both
def test_an_export_is_the_same_model(kernels: str) -> None:
    directory, _ = trained(BF16, kernels)
    checkpoint, exported = directory / f"iter_{STEPS:07}", directory / "hf"
    command("convert", "to-hf", str(checkpoint), str(exported), "--format", "qwen2")
    assert "logits:" in command("convert", "verify", str(checkpoint), str(exported))


@needs_engine
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_fp8_losses_are_near(recipe: str) -> None:
    assert losses(BF16, ENGINE, f"training.fp8={recipe}") == pytest.approx(losses(FP32, CPU), rel=2 * ROUNDED)


@needs_engine
def test_fp8_goes_on_from_a_checkpoint() -> None:
    settings = (BF16, ENGINE, "training.fp8=tensorwise", DETERMINISTIC)
    trained(*settings, f"training.exit_iter={STEPS // 2}", name="fp8-halves")
    assert bits(*settings, name="fp8-halves") == bits(*settings)


def test_ranks_on_one_gpu_give_the_losses_of_one() -> None:
    layout = ("parallel.backend=gloo_for_testing", "parallel.tensor_model_parallel_size=2")
    layout += ("parallel.sequence_parallel=true",)
    assert losses(FP32, TORCH, *layout, processes=2) == pytest.approx(losses(FP32, CPU), rel=SAME)
