"""What every layer may need to know of a micro-batch besides its hidden states.

Legend: s whole sequence, b micro-batch, g key/value heads on this rank, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from qwen_megatron.model.packed import Documents

T = TypeVar("T")


class KeyValueCache(Protocol):
    """Keys and values of tokens that were run before."""

    def extend(
        self, layer_number: int, key_sbgd: torch.Tensor, value_sbgd: torch.Tensor, offsets: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values of each row's tokens from its offset on.

        Returns:
            [s', b, g, d] twice: those of all tokens up to the last of the longest row; what lies beyond the end of a
            shorter row is of no meaning.
        """

    def room(
        self, layer_number: int, heads: tuple[int, int], like: torch.Tensor, offsets: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where one new token of each row is to be written, at the row's offset.

        Args:
            layer_number: From 1.
            heads: g and d.
            like: A tensor of their device and dtype.
            offsets: Of each row.
        Returns:
            [b, g, c, d] twice, the keys and values that there are.
        """


@dataclass(kw_only=True)
class AttentionContext(PackedSeqParams):
    """Documents, dropout keys and key/value cache of one micro-batch.

    Megatron-Core hands its `packed_seq_params` to every layer, to recomputation and to the core attention as it is;
    this is one, of no packed format, with fields of our own.

    Attributes:
        document_ids_bs: int64 [b, s], number of each token's document in rising order, of whole sequences on every
            rank; None if tokens see all tokens before them.
        dropout_keys_b: int64 [b], what the masks of a row's dropout follow from; None if nothing is dropped.
        cache: Keys and values of the tokens before, where there are some to be kept; None for none.
        offsets: Position of each row's first token: so many of the row are in the cache. Empty: 0 for all rows.
        text_lengths: Tokens of each row's text as far as dynamic NTK counts them: what it was when the first of them
            was run. Empty: all tokens up to the last of this micro-batch.
        shared: What one layer has made of it for all.
    """

    document_ids_bs: torch.Tensor | None = None
    dropout_keys_b: torch.Tensor | None = None
    cache: KeyValueCache | None = None
    offsets: tuple[int, ...] = ()
    text_lengths: tuple[int, ...] = ()
    shared: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.cache is None and any(self.offsets):
            raise ValueError(f"offsets={self.offsets}: tokens before the first need a cache of their keys; give one")

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What all layers need alike, made by the first that asks."""
        if key not in self.shared:
            self.shared[key] = make()
        return cast(T, self.shared[key])

    @property
    def documents(self) -> Documents | None:
        """Where documents begin and end; None if tokens see all tokens before them."""
        ids_bs = self.document_ids_bs
        return None if ids_bs is None else self.once("documents", lambda: documents_where(ids_bs))

    @property
    def host_keys(self) -> tuple[int, ...]:
        """The keys of dropout as numbers; none where nothing is dropped."""
        keys_b = self.dropout_keys_b
        return () if keys_b is None else self.once("host_keys", lambda: tuple(keys_b.tolist()))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> AttentionContext:
        """The same with its tensors where `move` takes them; what layers need on the host is read before.

        Args:
            move: Copies a tensor of the host to a device.
        """
        there = AttentionContext(
            document_ids_bs=None if self.document_ids_bs is None else move(self.document_ids_bs),
            dropout_keys_b=None if self.dropout_keys_b is None else move(self.dropout_keys_b),
            cache=self.cache,
            offsets=self.offsets,
            text_lengths=self.text_lengths,
        )
        if self.documents is not None:
            there.shared["documents"] = self.documents.moved(move)
        if self.host_keys:
            there.shared["host_keys"] = self.host_keys
        return there

    def check(self, rows: int, length: int) -> None:
        """Holds the context against the micro-batch it came with.

        Args:
            rows: b.
            length: s, of the whole sequence.
        Raises:
            ValueError: if it is one of another micro-batch.
        """
        for name, tensor, shape in (
            ("document_ids_bs", self.document_ids_bs, (rows, length)),
            ("dropout_keys_b", self.dropout_keys_b, (rows,)),
        ):
            if tensor is not None and (tensor.dtype != torch.int64 or tuple(tensor.shape) != shape):
                raise ValueError(
                    f"{name} must be int64 {list(shape)} for this micro-batch, but is {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
        for name, numbers in (("offsets", self.offsets), ("text_lengths", self.text_lengths)):
            if numbers and len(numbers) != rows:
                raise ValueError(f"{name} must have one number a row, {rows}, but has {len(numbers)}")

    def refuse_beyond(self, takes: Collection[str], kernel: str) -> None:
        """Refuses what a kernel would ignore.

        Args:
            takes: `documents`, `cache`, `windows`.
            kernel: Its name.
        Raises:
            ValueError: naming what it would ignore.
        """
        if self.document_ids_bs is not None and "documents" not in takes:
            raise ValueError(f"{kernel} would ignore that documents do not see each other; use the torch kernels")
        if self.cache is not None and "cache" not in takes:
            raise ValueError(f"{kernel} would ignore the key/value cache; use the torch kernels")


def documents_where(ids_bs: torch.Tensor) -> Documents:
    """The documents of [b, s] numbers, their boundaries on the device that these are on."""
    return Documents.of(ids_bs).moved(lambda boundaries: boundaries.to(ids_bs.device))


NO_CONTEXT = AttentionContext()


def context_of(given: PackedSeqParams | None) -> AttentionContext:
    """The context that Megatron-Core hands on; an empty one for None.

    Raises:
        ValueError: for packed sequences of Megatron-Core's own, which our layers would ignore.
    """
    if given is None:
        return NO_CONTEXT
    if not isinstance(given, AttentionContext):
        raise ValueError(f"packed sequences come as an AttentionContext, not as {type(given).__name__}")
    return given
