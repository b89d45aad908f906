"""Shims change exactly what they name, and say so when they cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

import pytest

from qwen_megatron.errors import PlatformError
from qwen_megatron.platforms.shims.registry import Constants, Rebind, Shim, TorchNamespace, apply_shims, rewrite_code

TARGET = "shim_target"

SOURCE = """
import functools

def keep(function):
    @functools.wraps(function)
    def outer(*args):
        return ("decorated", function(*args))
    return outer

def plain(value):
    return value + "cuda"

def nested():
    def inner():
        return [name + "!" for name in ("cuda", "other")]
    return inner()

def member(value):
    return value in ("cuda", ("cuda", 7))

def default():
    return value_of(device="cuda")

def value_of(device):
    return device

def moves(tensor):
    return tensor.cuda()

@keep
def wrapped():
    return "cuda"

class Holder:
    def method(self):
        return "cuda"

    @classmethod
    def of_class(cls):
        return "cuda"

    @staticmethod
    def static():
        return "cuda"

    attribute = 3
"""


@pytest.fixture
def target() -> Iterator[Any]:
    """A module to be changed, thrown away afterwards."""
    module = ModuleType(TARGET)
    exec(SOURCE, module.__dict__)
    sys.modules[TARGET] = module
    yield module
    del sys.modules[TARGET]


def constants(name: str, literals: dict[str, str] | None = None, names: dict[str, str] | None = None) -> Constants:
    return Constants(target=f"{TARGET}:{name}", reason="why", until="when", literals=literals or {}, names=names or {})


@pytest.mark.parametrize(
    "path", ["shim_target:absent", "shim_target:Holder.absent", "shim_target:Absent.method", "shim_target.absent:name"]
)
@pytest.mark.parametrize("kind", ["rebind", "constants", "namespace"])
def test_missing_target_is_named(target: Any, kind: str, path: str) -> None:
    text = {"target": path, "reason": "why it is needed", "until": "when"}
    shim: Shim = {
        "rebind": lambda: Rebind(**text, replacement=1),
        "constants": lambda: Constants(**text, literals={"cuda": "cpu"}, names={}),
        "namespace": lambda: TorchNamespace(**text, namespace=ModuleType("torch")),
    }[kind]()
    with pytest.raises(PlatformError) as caught:
        shim.apply()
    assert path in str(caught.value)
    assert "0.16.1" in str(caught.value)
    assert "why it is needed" in str(caught.value)


def test_missing_target_stops_before_later_shims(target: Any) -> None:
    absent = Rebind(target=f"{TARGET}:absent", reason="why", until="when", replacement=1)
    later = Rebind(target=f"{TARGET}:plain", reason="why", until="when", replacement=1)
    with pytest.raises(PlatformError, match="absent"):
        apply_shims([absent, later])
    assert callable(target.plain)


def test_rebind_replaces_module_and_class_attributes(target: Any) -> None:
    lines = apply_shims(
        [
            Rebind(target=f"{TARGET}:plain", reason="first reason", until="first end", replacement=len),
            Rebind(target=f"{TARGET}:Holder.attribute", reason="second reason", until="second end", replacement=4),
        ]
    )
    assert target.plain is len
    assert target.Holder.attribute == 4
    assert lines == [
        "shim_target:plain: first reason (until first end)",
        "shim_target:Holder.attribute: second reason (until second end)",
    ]


def test_constants_are_rewritten_in_place(target: Any) -> None:
    before = target.plain
    constants("plain", {"cuda": "cpu"}).apply()
    # Whoever imported the function earlier has the same object.
    assert before("on ") == "on cpu"
    assert target.plain is before


def test_constants_reach_nested_functions_and_tuples(target: Any) -> None:
    constants("nested", {"cuda": "cpu"}).apply()
    constants("member", {"cuda": "cpu"}).apply()
    constants("default", {"cuda": "cpu"}).apply()
    assert target.nested() == ["cpu!", "other!"]
    assert target.member("cpu")
    assert target.member(("cpu", 7))
    assert not target.member("cuda")
    assert target.default() == "cpu"


def test_attribute_names_are_rewritten(target: Any) -> None:
    class Tensor:
        def cpu(self) -> str:
            return "moved to the CPU"

    constants("moves", names={"cuda": "cpu"}).apply()
    assert target.moves(Tensor()) == "moved to the CPU"


def test_methods_and_decorated_functions_are_rewritten(target: Any) -> None:
    for name in ("Holder.method", "Holder.of_class", "Holder.static", "wrapped"):
        constants(name, {"cuda": "cpu"}).apply()
    assert target.Holder().method() == "cpu"
    assert target.Holder.of_class() == "cpu"
    assert target.Holder.static() == "cpu"
    assert target.wrapped() == ("decorated", "cpu")


@pytest.mark.parametrize("name", ["plain", "nested", "member", "moves"])
def test_target_without_the_literal_raises(target: Any, name: str) -> None:
    with pytest.raises(PlatformError) as caught:
        constants(name, {"torch.cuda.FloatTensor": "torch.FloatTensor"}, {"hip": "cpu"}).apply()
    assert f"{TARGET}:{name}" in str(caught.value)
    assert "torch.cuda.FloatTensor" in str(caught.value)
    assert "hip" in str(caught.value)


def test_applying_constants_twice_raises(target: Any) -> None:
    constants("nested", {"cuda": "cpu"}).apply()
    with pytest.raises(PlatformError, match="shim_target:nested holds none of"):
        constants("nested", {"cuda": "cpu"}).apply()


def test_constants_refuse_what_is_no_function(target: Any) -> None:
    with pytest.raises(PlatformError, match=r"Holder\.attribute is not a plain function but int"):
        constants("Holder.attribute", {"cuda": "cpu"}).apply()


def test_rewrite_code_leaves_other_code_alone(target: Any) -> None:
    code = target.nested.__code__
    assert rewrite_code(code, {"absent": "cpu"}, {}) is code
    changed = rewrite_code(code, {"other": "third"}, {})
    inner = next(value for value in changed.co_consts if isinstance(value, CodeType))
    assert inner is not next(value for value in code.co_consts if isinstance(value, CodeType))
    assert (changed.co_name, changed.co_firstlineno) == (code.co_name, code.co_firstlineno)
    assert target.nested() == ["cuda!", "other!"]
