"""Counts what operations would cost while they run on fake tensors: live memory, operations, bytes sent.

Legend: m, k, n sizes of a product; b rows, h heads, s queries, t keys, d head size.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten

# Functions of the arguments of a product: its operations, two for each multiplication.
PRODUCTS: Mapping[str, Callable[..., int]] = {
    "aten::mm": lambda a, b: 2 * a.size(0) * a.size(1) * b.size(1),
    "aten::addmm": lambda bias, a, b, *_: 2 * a.size(0) * a.size(1) * b.size(1),
    "aten::addmm_": lambda bias, a, b, *_: 2 * a.size(0) * a.size(1) * b.size(1),
    "aten::bmm": lambda a, b: 2 * a.size(0) * a.size(1) * a.size(2) * b.size(2),
}

# Names of the collectives as torch dispatches them, and which argument holds what this rank sends or gets the sum of.
COLLECTIVES = {
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::allgather_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::reduce_scatter_": ("reduce_scatter", 1),
    "c10d::send": ("send", 0),
    "c10d::recv_": ("receive", 0),
    "c10d::alltoall_base_": ("all_to_all", 0),
}

# Those of several tensors at once, for which torch has no fake version.
COALESCED = {
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", 0),
}
COLLECTIVES |= COALESCED

# Operations that change content alone: there is none, and most of what a program does in small pieces is one of these.
IN_PLACE = frozenset(
    f"aten::{name}_" for name in ("copy", "add", "sub", "mul", "div", "exp", "fill", "zero", "masked_fill", "addmm")
)


class Ledger(TorchDispatchMode):
    """Runs everything inside on fake tensors and keeps accounts.

    A number that the program wants to know of a tensor without content is 1, and every token counts.

    Args:
        axes: Names of process groups to what they share; collectives of others count for `all`.
    Attributes:
        live_bytes: Of all storages that are alive now.
        peak_bytes: The most that ever were.
        flops: Operations of all products and of attention; causal attention counted half.
        sent_bytes: Size of the whole tensor of each collective among several ranks, by axis and name (`tensor
            all_reduce`); of a transfer, what is sent or received.
        calls: How many there were.
    """

    def __init__(self, axes: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.axes = axes or {}
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self.sent_bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.storages: dict[int, tuple[weakref.ref[Any], int]] = {}

    def start(self) -> None:
        """Counts from here on; what is alive stays counted."""
        self.peak_bytes, self.flops = self.live_bytes, 0
        self.sent_bytes.clear()
        self.calls.clear()

    def __enter__(self) -> Ledger:
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if func is aten._local_scalar_dense.default:
            return answer(args[0])
        if func is aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        if name in IN_PLACE or isinstance(kwargs.get("out"), torch.Tensor):
            written = args[0] if name in IN_PLACE else kwargs["out"]
            self.count(name, args, kwargs, written)
            return written
        result = without_content(func, args, kwargs) if name in COALESCED else func(*args, **kwargs)
        self.forget()
        self.count(name, args, kwargs, result)
        for tensor in tensors((args, kwargs, result)):
            self.hold(tensor)
        return result

    def forget(self) -> None:
        """Lets go of what the fake mode remembers of its results, which would keep them alive."""
        memo: Any = self.fake.fake_tensor_converter.meta_converter.tensor_memo
        if memo:
            memo.clear()

    def count(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Adds what an operation costs."""
        if name in PRODUCTS:
            self.flops += PRODUCTS[name](*args)
        elif "scaled_dot_product" in name:
            self.flops += attention_flops(name, args, kwargs)
        elif name in COLLECTIVES:
            kind, which = COLLECTIVES[name]
            group = group_in(args)
            if group.size() > 1:
                # Between two stages Megatron-Core sends one way through the group of all.
                is_transfer = kind in ("send", "receive")
                what = f"{'pipeline' if is_transfer else self.axes.get(group.group_name, 'all')} {kind}"
                self.sent_bytes[what] += sum(tensor.nbytes for tensor in tensors(args[which]))
                self.calls[what] += 1

    def hold(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage until it is gone."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.storages:
            return
        self.storages[key] = (weakref.ref(storage, lambda _: self.release(key)), size)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def release(self, key: int) -> None:
        """A storage is gone."""
        _, size = self.storages.pop(key)
        self.live_bytes -= size


def group_in(args: tuple[Any, ...]) -> dist.ProcessGroup:
    """The group among the arguments of a collective."""
    (boxed,) = (arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()))
    return dist.ProcessGroup.unbox(boxed)


def without_content(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a collective on tensors of no size, which the groups of a dry run do not look at, for its handle."""
    with unset_fake_temporarily():
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: torch.empty(0, dtype=tensor.dtype), (args, kwargs))
        return func(*args, **kwargs)


def answer(tensor: torch.Tensor) -> bool | int | float:
    """What a program that reads a scalar is told: what it is, where it was written down; otherwise yes, or one."""
    if isinstance(tensor, FakeTensor) and tensor.constant is not None:
        with unset_fake_temporarily():
            return tensor.constant.item()
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested arguments."""
    return (value for value in tree_iter(values) if isinstance(value, torch.Tensor))


def attention_flops(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Of the fused kernel: two products forward, five backward, half of the square where it is causal."""
    is_backward = "backward" in name
    query, key = (args[1], args[2]) if is_backward else (args[0], args[1])
    pairs = query.size(-2) * key.size(-2)
    is_causal = kwargs.get("is_causal", False) or any(value is True for value in args)
    whole = 2 * math.prod(query.shape[:-2]) * pairs * query.size(-1) * (5 if is_backward else 2)
    return whole // 2 if is_causal else whole
