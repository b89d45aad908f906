"""The time of a step against steps that were measured: ours on one H200, Megatron-LM's on up to 768 H100s."""

from __future__ import annotations

import pytest

from qwen_megatron.config.arithmetic.memory import rank_memory
from qwen_megatron.planning.kernels import kernels_on
from qwen_megatron.planning.machine import load_machine
from qwen_megatron.planning.published import (
    EXPERIMENT,
    FITTED_ON,
    H200_ROWS,
    ROWS,
    OneGpu,
    extra_bytes,
    fitted,
    tflops_of,
)
from qwen_megatron.planning.step_time import step_time

H200, H100 = load_machine("h200-141gb"), load_machine("h100-80gb")


@pytest.mark.parametrize("row", H200_ROWS, ids=lambda row: row.name)
def test_a_step_on_one_h200(row: OneGpu) -> None:
    config = row.config
    assert step_time(config, H200, EXPERIMENT).total == pytest.approx(row.seconds, rel=0.1)
    (memory,) = rank_memory(config, kernels_on(config, H200))
    assert (memory.total + extra_bytes(config)) / 2**30 == pytest.approx(row.gib, rel=0.05)


def test_megatron_lms_rows_fitted_on_two_of_them() -> None:
    shared = ("peak_tflops", "product_efficiency", "attention_efficiency", "memory_efficiency", "link_efficiency")
    assert all(getattr(H100, name) == getattr(H200, name) for name in shared), "one set of constants"
    engine = fitted(H100)
    for row in ROWS:
        assert row.config.num_parameters / 1e9 == pytest.approx(float(row.name.removesuffix("B")), rel=0.03)
        found = tflops_of(row, H100, engine)
        assert found == pytest.approx(row.tflops, rel=0.1), f"{row.name}, fitted on {' and '.join(FITTED_ON)}"
