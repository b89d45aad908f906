"""Shims: the only changes made to loaded libraries, each with its reason and its end.

A shim redirects one name of Megatron-Core or torch. It names its target exactly; a target that is gone raises, so that
an update of a library cannot pass silently over a shim that no longer does anything.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from qwen_megatron.errors import PlatformError

MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Shim:
    """One redirected name.

    Attributes:
        target: `package.module:qualified.name` of what is changed.
        reason: What fails without it.
        until: When it can go.
        library: Whose name it is.
        version: Of the library it was written against.
    """

    target: str
    reason: str
    until: str
    library: str = "megatron-core"
    version: str = "0.16.1"

    @property
    def line(self) -> str:
        """For the log."""
        return f"{self.target}: {self.reason} (until {self.until})"

    def apply(self) -> None:
        """Changes the loaded library."""
        raise NotImplementedError

    def owner(self) -> tuple[Any, str]:
        """The object that holds the target, and the attribute's name in it.

        Raises:
            PlatformError: if the module, a class on the way or the attribute is gone.
        """
        module_name, _, path = self.target.partition(":")
        gone = PlatformError(
            f"shim target {self.target} does not exist; it was written for {self.library} "
            f"{self.version} ({self.reason}). Install that version or adapt platforms/shims/."
        )
        try:
            holder: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise gone from error
        *parents, name = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent, MISSING)
        if holder is MISSING or getattr(holder, name, MISSING) is MISSING:
            raise gone
        return holder, name


@dataclass(frozen=True, kw_only=True)
class Rebind(Shim):
    """Replaces the target by `replacement`."""

    replacement: Any

    def apply(self) -> None:
        """Puts the replacement in the target's place."""
        holder, name = self.owner()
        setattr(holder, name, self.replacement)


@dataclass(frozen=True, kw_only=True)
class TorchNamespace(Shim):
    """Gives a Megatron module (target `module:torch`) a copy of torch with a few names overridden.

    Global torch stays as it is: user code and other libraries never see the copy.
    """

    namespace: ModuleType

    def apply(self) -> None:
        """Lets the module see the other namespace."""
        holder, name = self.owner()
        setattr(holder, name, self.namespace)


@dataclass(frozen=True, kw_only=True)
class Constants(Shim):
    """Rewrites literals and attribute names inside one function of Megatron.

    Needed where a device or a type is spelled in the code (`device="cuda"`, `param.type() == "torch.cuda.FloatTensor"`)
    and no argument reaches it.

    Attributes:
        literals: Old string to new string, also inside constant tuples.
        names: Old to new attribute names (`tensor.cuda()` to `tensor.cpu()`).
    """

    literals: dict[str, str]
    names: dict[str, str]

    def apply(self) -> None:
        """Replaces constants in the function's code."""
        holder, name = self.owner()
        static = holder.__dict__.get(name)
        function = getattr(static, "__func__", static)
        function = getattr(function, "__wrapped__", function)
        if not isinstance(function, FunctionType):
            raise PlatformError(f"shim target {self.target} is not a plain function but {type(static).__name__}")
        code = rewrite_code(function.__code__, self.literals, self.names)
        if code is function.__code__:
            raise PlatformError(
                f"shim target {self.target} holds none of {sorted(self.literals) + sorted(self.names)}; it was written "
                f"for {self.library} {self.version}. Install that version or adapt platforms/shims/."
            )
        function.__code__ = code


def rewrite_code(code: CodeType, literals: dict[str, str], names: dict[str, str]) -> CodeType:
    """`code` with constants and attribute names replaced, also in nested functions; `code` itself if none occurs."""

    def constant(value: Any) -> Any:
        if isinstance(value, str):
            return literals.get(value, value)
        if isinstance(value, tuple):
            return tuple(constant(item) for item in value)
        if isinstance(value, CodeType):
            return rewrite_code(value, literals, names)
        return value

    constants = tuple(constant(value) for value in code.co_consts)
    attributes = tuple(names.get(name, name) for name in code.co_names)
    # Compared by identity for nested code: two code objects with equal source compare equal.
    same = all(
        new is old or (type(new) is not CodeType and new == old)
        for new, old in zip(constants, code.co_consts, strict=True)
    )
    if same and attributes == code.co_names:
        return code
    return code.replace(co_consts=constants, co_names=attributes)


def apply_shims(shims: Sequence[Shim]) -> list[str]:
    """Applies every shim, in order; returns one line each for the log."""
    for shim in shims:
        shim.apply()
    return [shim.line for shim in shims]


@contextlib.contextmanager
def applied(shim: Rebind) -> Iterator[None]:
    """The shim, for as long as the context is open."""
    holder, name = shim.owner()
    original = getattr(holder, name)
    shim.apply()
    try:
        yield
    finally:
        setattr(holder, name, original)
