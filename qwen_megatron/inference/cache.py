"""Keys and values of tokens that were run before, so that a new token costs one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Rows grow in steps of so many tokens at least.
STEP = 64


class KeyValueCache:
    """Room for the keys and values of every layer on this rank, made when a layer first comes by.

    Rows have their own lengths; room grows by half of what is there, and is given up with the last row.

    Legend: s sequence, b rows, g key/value heads on this rank, d head size, c room for tokens.

    Args:
        max_length: Tokens of the longest row at most; None for as many as there is memory for.
    Attributes:
        layers: Layer -> [b, g, c, d] of keys and of values.
    """

    def __init__(self, max_length: int | None = None):
        self.max_length = max_length
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(
        self,
        layer_number: int,
        key_sbgd: torch.Tensor,
        value_sbgd: torch.Tensor,
        offsets: Sequence[int],
        first_row: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values of each row's tokens from its offset on, over what was stored there before.

        Args:
            layer_number: From 1.
            key_sbgd, value_sbgd: [s, b, g, d].
            offsets: Of each row.
            first_row: Place of the first of the rows; the others follow it.
        Returns:
            [max(offsets) + s, b, g, d] twice, views of the cache; beyond the end of a shorter row they are whatever was
            there.
        Raises:
            ValueError: if there is no room for them.
        """
        count = key_sbgd.size(0)
        end = max(offsets) + count
        heads = (key_sbgd.size(2), key_sbgd.size(3))
        keys, values = self.room(layer_number, heads, key_sbgd, offsets, count=count, first_row=first_row)
        new_keys, new_values = key_sbgd.permute(1, 2, 0, 3), value_sbgd.permute(1, 2, 0, 3)
        if len(set(offsets)) == 1:
            keys[:, :, offsets[0] : end], values[:, :, offsets[0] : end] = new_keys, new_values
        else:
            for row, offset in enumerate(offsets):
                keys[row, :, offset : offset + count] = new_keys[row]
                values[row, :, offset : offset + count] = new_values[row]
        return keys[:, :, :end].permute(2, 0, 1, 3), values[:, :, :end].permute(2, 0, 1, 3)

    def room(
        self,
        layer_number: int,
        heads: tuple[int, int],
        like: torch.Tensor,
        offsets: Sequence[int],
        *,
        count: int = 1,
        first_row: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes the room that `attention_context.KeyValueCache` names, for ``count`` tokens of rows from ``first_row``.

        Returns:
            [b, g, c, d] twice, views of the cache.
        Raises:
            ValueError: if there is no room for them.
        """
        end, last_row = max(offsets) + count, first_row + len(offsets)
        if self.max_length is not None and end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens a row, but token {end} came; make a longer one")
        keys, values = self.with_room(layer_number, last_row, end, heads, like)
        return keys[first_row:last_row], values[first_row:last_row]

    def with_room(
        self, layer_number: int, rows: int, length: int, heads: tuple[int, int], like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors of a layer, made or moved so that so many rows of so many tokens fit."""
        held = self.layers.get(layer_number)
        had_rows, had_length = (held[0].size(0), held[0].size(2)) if held else (0, 0)
        if held and rows <= had_rows and length <= had_length:
            return held
        if length > had_length:
            length = -(-max(length, had_length + had_length // 2) // STEP) * STEP
        if self.max_length is not None:
            length = min(length, self.max_length)
        shape = (max(rows, had_rows), heads[0], max(length, had_length), heads[1])
        # Zeros: a weight of 0 on what was never written must not meet a NaN.
        made = like.new_zeros(shape), like.new_zeros(shape)
        for old, new in zip(held or (), made, strict=bool(held)):
            new[:had_rows, :, :had_length] = old
        self.layers[layer_number] = made
        return made

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first tokens of one row over another, so that the rows in use lie side by side."""
        for keys, values in self.layers.values():
            keys[target, :, :length], values[target, :, :length] = keys[source, :, :length], values[source, :, :length]

    def keep(self, rows: int) -> None:
        """Gives up the rows beyond the first `rows`, with their memory where it is half or more of all."""
        if rows == 0:
            self.layers.clear()
        for number, held in self.layers.items():
            if rows <= held[0].size(0) // 2:
                self.layers[number] = (held[0][:rows].clone(), held[1][:rows].clone())

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())


class CacheRows:
    """Neighbouring rows of a cache: what new texts are run into, beside others.

    Args:
        cache: The whole.
        first_row: Place of the first of them.
    """

    def __init__(self, cache: KeyValueCache, first_row: int):
        self.cache = cache
        self.first_row = first_row

    def extend(
        self, layer_number: int, key_sbgd: torch.Tensor, value_sbgd: torch.Tensor, offsets: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values of these rows; see `KeyValueCache.extend`."""
        return self.cache.extend(layer_number, key_sbgd, value_sbgd, offsets, self.first_row)

    def room(
        self, layer_number: int, heads: tuple[int, int], like: torch.Tensor, offsets: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a token of each of these rows is to be written; see `KeyValueCache.room`."""
        return self.cache.room(layer_number, heads, like, offsets, first_row=self.first_row)
