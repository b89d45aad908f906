"""Variables that CUDA, NCCL and Transformer Engine read when they start; here alone they are set or checked.

A variable that the user has set is kept. Where it goes against what the configuration asks for, that is an error if the
result could differ, and said in the log if only the speed does.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qwen_megatron.errors import PlatformError


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable that is set before CUDA starts.

    Attributes:
        name: Of the variable.
        value: Set where the user has set none.
        reason: Why.
        also: Other values of the user that serve as well.
        is_needed: Another value is an error, not a warning.
    """

    name: str
    value: str
    reason: str
    also: Collection[str] = ()
    is_needed: bool = False


ONE_QUEUE = Variable(
    name="CUDA_DEVICE_MAX_CONNECTIONS",
    value="1",
    reason="tensor-parallel communication is launched before the products that hide it",
)
FIXED_BUFFERS = Variable(
    name="NCCL_GRAPH_REGISTER",
    value="0",
    reason="NCCL registers no buffers of CUDA graphs, which torch may move (PYTORCH_CUDA_ALLOC_CONF)",
)
# Megatron-Core's list for its deterministic mode, and cuBLAS's from its documentation.
DETERMINISTIC = (
    Variable(
        name="CUBLAS_WORKSPACE_CONFIG",
        value=":4096:8",
        reason="cuBLAS sums in one order",
        also=(":16:8",),
        is_needed=True,
    ),
    Variable(
        name="NCCL_ALGO",
        value="Ring",
        reason="NCCL sums in one order",
        also=("Tree", "CollnetDirect", "CollnetChain", "^NVLS"),
        is_needed=True,
    ),
    Variable(
        name="NVTE_ALLOW_NONDETERMINISTIC_ALGO",
        value="0",
        reason="Transformer Engine's attention sums in one order",
        is_needed=True,
    ),
)


def cuda_variables(
    *, tensor_parallel: bool = False, deterministic: bool = False, cuda_graphs: bool = False
) -> list[Variable]:
    """What a configuration needs."""
    return [
        *([ONE_QUEUE] if tensor_parallel else []),
        *([FIXED_BUFFERS] if cuda_graphs else []),
        *(DETERMINISTIC if deterministic else ()),
    ]


def set_variables(variables: Sequence[Variable]) -> list[str]:
    """Sets what the user has not set.

    Returns:
        A line for each, for the log.
    Raises:
        PlatformError: naming every variable whose value goes against the configuration; none is set then.
    """
    given = {variable.name: os.environ.get(variable.name) for variable in variables}
    lines, wrong = [], []
    for variable in variables:
        value = given[variable.name]
        if value is None:
            lines.append(f"{variable.name}={variable.value}: {variable.reason}")
        elif value == variable.value or value in variable.also:
            lines.append(f"{variable.name}={value}, as it was set: {variable.reason}")
        elif variable.is_needed:
            wrong.append(f"{variable.name}={value} is set, {variable.value} is needed: {variable.reason}")
        else:
            lines.append(f"{variable.name}={value} was set and is kept; with {variable.value} {variable.reason}")
    if wrong:
        raise PlatformError(
            "training.deterministic: " + "; ".join(wrong) + ". Unset them, or use training.deterministic=false"
        )
    for variable in variables:
        os.environ.setdefault(variable.name, variable.value)
    return lines
