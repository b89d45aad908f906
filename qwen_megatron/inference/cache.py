"""Keys and values of tokens that were run before, so that a new token costs one token."""

from __future__ import annotations

import torch


class KeyValueCache:
    """Room for the keys and values of every layer on this rank, made when a layer first comes by.

    Legend: s sequence, b rows, g key/value heads on this rank, d head size.

    Args:
        max_length: Tokens of the longest row.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(
        self, layer_number: int, key_sbgd: torch.Tensor, value_sbgd: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values of the tokens from `offset` on; what was stored from there on before is forgotten.

        Returns:
            [offset + s, b, g, d] twice: those of all tokens up to the last new one, views of the cache.
        Raises:
            ValueError: if there is no room for them.
        """
        end = offset + key_sbgd.size(0)
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens a row, but token {end} came; make a longer one")
        if layer_number not in self.layers:
            shape = (self.max_length, *key_sbgd.shape[1:])
            self.layers[layer_number] = (key_sbgd.new_empty(shape), value_sbgd.new_empty(shape))
        keys, values = self.layers[layer_number]
        keys[offset:end], values[offset:end] = key_sbgd, value_sbgd
        return keys[:end], values[:end]
