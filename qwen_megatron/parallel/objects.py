"""Small objects between ranks, as JSON: what a peer sends is parsed and checked, never run.

The object collectives of torch.distributed unpickle what arrives, which hands this process to whoever can reach its
sockets. Here a rank sends the length of a text and the text; every rank sees the same bytes and comes to the same
result or the same error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from qwen_megatron.errors import PlatformError

# Of one rank. The largest object is a table of checksums of a stage's weights.
MAX_BYTES = 16 * 2**20

T = TypeVar("T")
Parse = Callable[[Any], T]


def all_gather(value: Any, parse: Parse[T]) -> list[T]:
    """Every rank's value, by rank. Collective; without a job the only value.

    Args:
        value: What JSON can hold, at most `MAX_BYTES` long.
        parse: Turns a decoded value into what is returned; raises ValueError, TypeError or KeyError if it is not what
            this program sends.
    Raises:
        PlatformError: on every rank, naming the one that sent something else.
    """
    content = encode(value)
    if not is_shared():
        return [decode(content, parse, 0)]
    world_size = dist.get_world_size()
    lengths = torch.empty(world_size, dtype=torch.int64, device=device())
    dist.all_gather_into_tensor(lengths, torch.tensor([len(content)], dtype=torch.int64, device=device()))
    sizes = checked_sizes(lengths.tolist(), range(world_size))
    longest = max(sizes)
    mine = torch.zeros(longest, dtype=torch.uint8, device=device())
    mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    everyone = torch.empty(world_size * longest, dtype=torch.uint8, device=device())
    dist.all_gather_into_tensor(everyone, mine)
    rows = everyone.view(world_size, longest).cpu().numpy()
    return [decode(rows[rank, :size].tobytes(), parse, rank) for rank, size in enumerate(sizes)]


def gather(value: Any, parse: Parse[T]) -> list[T]:
    """Every rank's value, by rank, on rank 0; an empty list on the others. Collective; without a job the only value.

    Args:
        value, parse: As of `all_gather`.
    Raises:
        PlatformError: on rank 0, naming the one that sent something else; on every rank, if it was too long.
    """
    content = encode(value)
    if not is_shared():
        return [decode(content, parse, 0)]
    world_size, is_main = dist.get_world_size(), dist.get_rank() == 0
    lengths = torch.empty(world_size, dtype=torch.int64, device=device())
    dist.all_gather_into_tensor(lengths, torch.tensor([len(content)], dtype=torch.int64, device=device()))
    sizes = checked_sizes(lengths.tolist(), range(world_size))
    mine = torch.zeros(max(sizes), dtype=torch.uint8, device=device())
    mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(world_size)] if is_main else None
    dist.gather(mine, everyone, dst=0)
    return [
        decode(row.cpu().numpy()[:size].tobytes(), parse, rank)
        for rank, (row, size) in enumerate(zip(everyone or [], sizes, strict=False))
    ]


def broadcast(value: Any, parse: Parse[T], source: int = 0) -> T:
    """The value of the rank `source`. Collective; without a job the own value.

    Args:
        value: As of `all_gather`; looked at on `source` only.
        parse: As of `all_gather`.
        source: Rank in the job.
    Raises:
        PlatformError: on every rank, if something else arrived.
    """
    if not is_shared():
        return decode(encode(value), parse, source)
    content = encode(value) if dist.get_rank() == source else b""
    length = torch.tensor([len(content)], dtype=torch.int64, device=device())
    dist.broadcast(length, src=source)
    (size,) = checked_sizes(length.tolist(), [source])
    text = torch.zeros(size, dtype=torch.uint8, device=device())
    if content:
        text.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(text, src=source)
    return decode(text.cpu().numpy().tobytes(), parse, source)


def anywhere(flag: bool) -> bool:
    """Whether it is so on any rank. Collective; without a job the own answer."""
    if not is_shared():
        return flag
    answer = torch.tensor([flag], dtype=torch.int64, device=device())
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return bool(answer.item())


def is_shared() -> bool:
    """Whether there are other ranks."""
    return dist.is_initialized() and dist.get_world_size() > 1


def device() -> torch.device:
    """Where the job's backend wants its tensors; for CUDA the current device of this rank."""
    return torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")


def encode(value: Any) -> bytes:
    """A value as JSON, without NaN and infinities."""
    return json.dumps(value, allow_nan=False).encode()


def checked_sizes(sizes: list[int], ranks: Sequence[int]) -> list[int]:
    """Lets the sizes that ranks announce pass if they are possible ones."""
    for rank, size in zip(ranks, sizes, strict=True):
        if not 0 < size <= MAX_BYTES:
            refuse(rank, f"{size} bytes, allowed are 1 to {MAX_BYTES}")
    return sizes


def decode(content: bytes, parse: Parse[T], rank: int) -> T:
    """The object that a rank has sent, parsed.

    Raises:
        PlatformError: if it is not JSON in UTF-8, or not what `parse` takes.
    """
    try:
        return parse(json.loads(content.decode("utf-8"), parse_constant=refuse_constant))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        refuse(rank, str(error)[:200] or type(error).__name__)


def refuse(rank: int, what: str) -> NoReturn:
    """Ends with an error about what a rank has sent."""
    raise PlatformError(
        f"rank {rank} sent what no rank of this program sends: {what}; run the same version on every machine, on a "
        "network that nobody else can reach"
    )


def refuse_constant(name: str) -> NoReturn:
    """Refuses NaN and infinities in JSON."""
    raise ValueError(f"{name} is not allowed")


def of_type(*kinds: type[Any]) -> Parse[Any]:
    """A parser that lets values of exactly these types through: True is not an int."""

    def parse(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"{type(value).__name__} instead of {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    return parse


def list_of(parse: Parse[T], length: int | None = None) -> Parse[list[T]]:
    """A parser of lists whose items `parse` takes, of `length` if it is given."""

    def parse_list(value: Any) -> list[T]:
        items = of_type(list)(value)
        if length is not None and len(items) != length:
            raise ValueError(f"{len(items)} items instead of {length}")
        return [parse(item) for item in items]

    return parse_list


def dict_of(parse: Parse[T]) -> Parse[dict[str, T]]:
    """A parser of dictionaries whose values `parse` takes; JSON's keys are texts."""
    return lambda value: {key: parse(item) for key, item in of_type(dict)(value).items()}


TEXT_OR_NONE: Parse[str | None] = of_type(str, type(None))
