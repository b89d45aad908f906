"""FusedAdam is AdamW: the same numbers as torch's, in the layout the distributed optimizer saves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qwen_megatron.platforms.shims.fused_adam import FusedAdam

STEPS = 20
OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = ((37, 19), (64,), (3, 5, 7), (1,))


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    # Scales from 1 to 1e-6: eps matters for the small ones.
    return [torch.randn(shape, generator=generator) * 10.0 ** (-2 * i) for i, shape in enumerate(SHAPES)]


def train(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for param, gradient in zip(params, gradients(step), strict=True):
            param.grad = gradient.to(param.dtype)
        for group in optimizer.param_groups:
            group["lr"] = OPTIONS["lr"] * (1 + step) / STEPS
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_adamw_in_fp64_to_fp32_rounding(weight_decay: float) -> None:
    options = OPTIONS | {"weight_decay": weight_decay}
    ours, exact = parameters(), parameters(torch.float64)
    train(FusedAdam(ours, **options), ours, range(STEPS))
    train(torch.optim.AdamW(exact, **options), exact, range(STEPS))
    for param, reference in zip(ours, exact, strict=True):
        # 20 updates, each rounded to half a unit in the last place of numbers below 4.
        torch.testing.assert_close(param.double(), reference, rtol=0, atol=STEPS * 2.0**-23)


def test_equals_torch_fused_adamw_bit_for_bit() -> None:
    ours, torchs = parameters(), parameters()
    train(FusedAdam(ours, **OPTIONS), ours, range(STEPS))
    train(torch.optim.AdamW(torchs, **OPTIONS, fused=True), torchs, range(STEPS))
    for param, reference in zip(ours, torchs, strict=True):
        assert torch.equal(param, reference)


def test_state_layout_is_what_megatron_saves() -> None:
    params = parameters()
    optimizer = FusedAdam(params, **OPTIONS)
    train(optimizer, params, range(3))
    (group,) = optimizer.param_groups
    assert group["step"] == 3
    assert isinstance(group["step"], int)
    for param in params:
        state = optimizer.state[param]
        assert set(state) == {"exp_avg", "exp_avg_sq"}
        assert {moment.shape for moment in state.values()} == {param.shape}
        assert {moment.dtype for moment in state.values()} == {torch.float32}


def test_goes_on_bit_for_bit_from_its_state() -> None:
    whole = parameters()
    train(FusedAdam(whole, **OPTIONS), whole, range(STEPS))

    first_half = parameters()
    optimizer = FusedAdam(first_half, **OPTIONS)
    train(optimizer, first_half, range(STEPS // 2))
    saved = copy.deepcopy(optimizer.state_dict())
    second_half = [torch.nn.Parameter(param.detach().clone()) for param in first_half]
    restored = FusedAdam(second_half, lr=5.0)
    restored.load_state_dict(saved)
    assert restored.param_groups[0]["step"] == STEPS // 2
    train(restored, second_half, range(STEPS // 2, STEPS))
    for param, reference in zip(second_half, whole, strict=True):
        assert torch.equal(param, reference)


def test_step_matters_when_going_on() -> None:
    """Without the step in the state, bias correction would start again: the update would be another one."""
    params = parameters()
    optimizer = FusedAdam(params, **OPTIONS)
    train(optimizer, params, range(STEPS // 2))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].pop("step")
    stepless = [torch.nn.Parameter(param.detach().clone()) for param in params]
    restored = FusedAdam(stepless, **OPTIONS)
    restored.load_state_dict(saved)
    train(optimizer, params, range(STEPS // 2, STEPS // 2 + 1))
    train(restored, stepless, range(STEPS // 2, STEPS // 2 + 1))
    assert not torch.equal(stepless[0], params[0])


def test_groups_have_their_own_decay_and_rate() -> None:
    decayed, free, still = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    optimizer = FusedAdam(
        [
            {"params": [decayed], "weight_decay": 0.5},
            {"params": [free], "weight_decay": 0.0},
            {"params": [still], "lr": 0.0},
        ],
        lr=0.1,
    )
    for param in (decayed, free, still):
        param.grad = torch.zeros(4)
    optimizer.step()
    torch.testing.assert_close(decayed.detach(), torch.full((4,), 0.95))
    assert torch.equal(free.detach(), torch.ones(4))
    assert torch.equal(still.detach(), torch.ones(4))


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = FusedAdam([{"params": [used, unused]}, {"params": []}], lr=0.1, weight_decay=0.5)
    used.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(4))
    assert unused not in optimizer.state
    assert not torch.equal(used.detach(), torch.ones(4))
    # The empty group counts along: ranks with and without parameters of a group save the same step.
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]


def test_unsupported_arguments_are_refused() -> None:
    params = parameters()
    with pytest.raises(ValueError, match="adam_w_mode"):
        FusedAdam(params, adam_w_mode=False)
    with pytest.raises(ValueError, match="closure"):
        FusedAdam(params).step(lambda: 0.0)
