"""What is settled around the first imports of torch and Megatron-Core."""

from __future__ import annotations

import gc
import os
import sys
from importlib.util import find_spec

import pytest

from qwen_megatron import libraries
from tests.support.ranks import RankPool


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of gc.freeze, which would keep the garbage of all tests; torch and Megatron-Core are not imported."""
    calls: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("frozen"))
    for name in ("torch", "megatron.core"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return calls


def test_first_imports_are_not_searched_for_garbage(frozen: list[str]) -> None:
    with libraries.first_imports():
        assert not gc.isenabled()
        assert frozen == []
    assert gc.isenabled()
    assert frozen == ["frozen"]


def test_reporters_are_left_out_and_come_back(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with libraries.first_imports(), pytest.raises(ImportError, match="left out"):
        find_spec("wandb")
    assert find_spec("wandb") is not None


def test_what_was_made_with_torch_may_be_garbage(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    with libraries.first_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == []


def test_collection_comes_back_after_an_import_that_fails(frozen: list[str]) -> None:
    with pytest.raises(ImportError), libraries.first_imports():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("there", ["everything", "no collection"])
def test_later_imports_change_nothing(there: str, frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if there == "everything":
        monkeypatch.setitem(sys.modules, "megatron.core", sys)
    else:
        gc.disable()
    try:
        with libraries.first_imports():
            assert gc.isenabled() == (there == "everything")
        assert gc.isenabled() == (there == "everything")
    finally:
        gc.enable()
    assert frozen == []


def what_is_loaded() -> tuple[str | None, list[bool]]:
    """The variable that the compiler goes by; whether Megatron-Core, the compiler and a reporter are imported."""
    modules = ("megatron.core.transformer", "torch._inductor.compile_fx", "wandb")
    return os.environ.get("TORCHDYNAMO_DISABLE"), [module in sys.modules for module in modules]


def test_megatron_core_loads_neither_the_compiler_nor_reporters(ranks: RankPool) -> None:
    """A rank has imported what runs need, and nothing else, under the variable that tests/conftest.py sets."""
    assert ranks.run(1, what_is_loaded) == [("1", [True, False, False])]
