"""AdamW on torch's fused kernel, in the interface that Megatron-Core knows from Transformer Engine and apex."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from qwen_megatron.platforms.shims.registry import Rebind, Shim

UNTIL_ADAM = "Megatron-Core's distributed optimizer loads the state of torch's fused AdamW"


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), one fused kernel call per parameter group.

    The step count stands in the parameter group, one for all its parameters; the state of a parameter is exactly
    `exp_avg` and `exp_avg_sq`, which is what the distributed optimizer saves, shards and loads.

    Args:
        params: Parameters or parameter groups, fp32.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay per step, times the learning rate.
        adam_w_mode: Only True is implemented.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ):
        if not adam_w_mode:
            raise ValueError("FusedAdam implements decoupled weight decay only: adam_w_mode=False is not supported")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from `param.grad`; parameters without gradient are left alone."""
        if closure is not None:
            raise ValueError("FusedAdam.step takes no closure")
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            states = [self.moments(param) for param in params]
            beta1, beta2 = group["betas"]
            # The kernel adds nothing to the steps it is given; they must be fp32 tensors, one per parameter.
            # Filled on the device: a copy from the host would wait for it.
            step = torch.full((), float(group["step"]), device=params[0].device)
            torch._fused_adamw_(
                params,
                [param.grad for param in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [step] * len(params),
                amsgrad=False,
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def moments(self, param: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameter's moments, zero at first use."""
        state = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def adam_shims() -> list[Shim]:
    """The distributed optimizer with a fused Adam whose step stands in the parameter group, as Transformer Engine's."""
    shim = functools.partial(Rebind, reason="torch's AdamW is not fused and its state does not load", until=UNTIL_ADAM)
    return [
        shim(target="megatron.core.optimizer:Adam", replacement=FusedAdam),
        shim(target="megatron.core.optimizer:USING_PYTORCH_OPTIMIZER", replacement=False),
        shim(target="megatron.core.optimizer.distrib_optimizer:Adam", replacement=FusedAdam),
        shim(target="megatron.core.optimizer.distrib_optimizer:HAVE_APEX_OR_TE", replacement=True),
        shim(target="megatron.core.optimizer.distrib_optimizer:USING_APEX_OPTIMIZER", replacement=True),
    ]
