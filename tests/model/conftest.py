"""Groups of one rank for tests that need no second one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qwen_megatron.parallel.groups import Groups


@pytest.fixture(scope="module")
def groups() -> Iterator["Groups"]:  # noqa: UP037 - imported late: it brings torch and Megatron
    """A job of one process on the CPU."""
    from qwen_megatron.inference.loading import single_process

    with single_process("cpu") as groups:
        yield groups
