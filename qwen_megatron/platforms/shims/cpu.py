"""The list of shims that let Megatron-Core 0.16 run on the CPU with gloo."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from qwen_megatron.platforms.comm_timer import timed
from qwen_megatron.platforms.shims.collectives import unless_alone
from qwen_megatron.platforms.shims.fused_adam import adam_shims
from qwen_megatron.platforms.shims.namespace import cpu_torch, overridden
from qwen_megatron.platforms.shims.registry import Constants, Rebind, Shim, TorchNamespace, apply_shims

UNTIL_DEVICE_ARGUMENT = "Megatron-Core takes the device as an argument"

# Modules that ask torch.cuda for the device, a stream or a synchronisation.
CUDA_CALLERS = (
    "megatron.core.dist_checkpointing.serialization",
    "megatron.core.distributed.distributed_data_parallel",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.pipeline_parallel.p2p_communication",
    "megatron.core.tensor_parallel.layers",
    "megatron.core.tensor_parallel.mappings",
    "megatron.core.tensor_parallel.utils",
    "megatron.core.utils",
)

# Functions in which device="cuda" is spelled out.
CUDA_LITERALS = (
    "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",
    "megatron.core.optimizer.optimizer:MixedPrecisionOptimizer.__init__",
    "megatron.core.pipeline_parallel.schedules:forward_backward_no_pipelining",
    "megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_with_interleaving",
    "megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_without_interleaving",
)

# Functions that tell a parameter's precision by the name of its CUDA tensor type.
TYPE_NAMES = (
    "megatron.core.optimizer.clip_grads:clip_grad_by_total_norm_fp32",
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.__init__",
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer._build_model_and_main_param_groups",
)

DEVICE = {"cuda": "cpu"}
TYPES = {
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
}


def get_rng_state(device: object = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    """State of the CPU generator, in the signature of Megatron's CUDA one."""
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
    """Sets the CPU generator, in the signature of Megatron's CUDA one."""
    torch.set_rng_state(new_state)


def cpu_shims() -> list[Shim]:
    """All shims of the CPU platform, in the order they are applied."""
    torch_on_cpu = cpu_torch()
    return [
        *(namespace_shim(name, torch_on_cpu) for name in CUDA_CALLERS),
        # Here the CPU's generator plays the GPU's part; in its own part, which the tracker watches and restores beside
        # it, stands a constant.
        namespace_shim(
            "megatron.core.tensor_parallel.random",
            overridden(
                torch_on_cpu, get_rng_state=lambda: torch.zeros(1, dtype=torch.uint8), set_rng_state=lambda state: None
            ),
        ),
        *(
            Constants(
                target=target, reason='device="cuda" is spelled', until=UNTIL_DEVICE_ARGUMENT, literals=DEVICE, names={}
            )
            for target in CUDA_LITERALS
        ),
        *(
            Constants(
                target=target,
                reason="CUDA tensor types are spelled",
                until=UNTIL_DEVICE_ARGUMENT,
                literals=TYPES,
                names={},
            )
            for target in TYPE_NAMES
        ),
        Constants(
            target="megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.get_parameter_state_dp_zero",
            reason="gathered state is moved with .cuda()",
            until=UNTIL_DEVICE_ARGUMENT,
            literals={},
            names={"cuda": "cpu"},
        ),
        Constants(
            target="megatron.core.models.common.language_module.language_module:LanguageModule.setup_embeddings_and_output_layer",
            reason="tied weights are moved with .cuda()",
            until=UNTIL_DEVICE_ARGUMENT,
            literals={},
            names={"cuda": "cpu"},
        ),
        *rng_shims(),
        *adam_shims(),
        *collective_shims(),
        *timing_shims(),
    ]


def namespace_shim(module_name: str, namespace: ModuleType) -> TorchNamespace:
    """The shim that lets a module see another `torch`."""
    return TorchNamespace(
        target=f"{module_name}:torch", reason="torch.cuda is asked", until=UNTIL_DEVICE_ARGUMENT, namespace=namespace
    )


def rng_shims() -> list[Shim]:
    """Dropout draws from the CPU generator."""
    module = "megatron.core.tensor_parallel.random"
    reason = "the CUDA generator is asked"
    return [
        Rebind(
            target=f"{module}:_get_cuda_rng_state",
            reason=reason,
            until=UNTIL_DEVICE_ARGUMENT,
            replacement=get_rng_state,
        ),
        Rebind(
            target=f"{module}:_set_cuda_rng_state",
            reason=reason,
            until=UNTIL_DEVICE_ARGUMENT,
            replacement=set_rng_state,
        ),
    ]


def collective_shims() -> list[Shim]:
    """No copies through gloo between a gradient or weight buffer and itself."""
    module = "megatron.core.distributed.param_and_grad_buffer"
    shim = functools.partial(
        Rebind,
        reason="gloo copies the whole buffer in a group of one",
        until="Megatron-Core leaves out collectives of one rank",
    )
    return [
        shim(
            target=f"{module}:dist_all_gather_func", replacement=unless_alone(torch.distributed.all_gather_into_tensor)
        ),
        shim(
            target=f"{module}:dist_reduce_scatter_func",
            replacement=unless_alone(torch.distributed.reduce_scatter_tensor),
        ),
    ]


def timing_shims() -> list[Shim]:
    """The layers' other collectives, which they bind to names of their own, tell how long they take."""
    functions: dict[str, Callable[..., Any]] = {
        "dist_all_gather_func": torch.distributed.all_gather_into_tensor,
        "dist_reduce_scatter_func": torch.distributed.reduce_scatter_tensor,
    }
    return [
        Rebind(
            target=f"megatron.core.tensor_parallel.{module}:{name}",
            reason="collectives inside layers are not timed",
            until="Megatron-Core times them",
            replacement=timed(function),
        )
        for module in ("layers", "mappings")
        for name, function in functions.items()
    ]


@functools.cache
def apply_cpu_shims() -> list[str]:
    """Applies the CPU shims once per process; returns the log lines, the same ones on every call."""
    importlib.import_module("megatron.core")
    return apply_shims(cpu_shims())
