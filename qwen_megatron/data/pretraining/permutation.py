"""A keyed permutation of 0..n-1 whose every value is computed alone: no table, no start-up time, no file."""

from __future__ import annotations

import hashlib

ROUNDS = 6


class KeyedPermutation:
    """A pseudo-random bijection of `range(size)`, in O(1) time and memory.

    A balanced Feistel network permutes the next power of four; values that fall outside are sent through again
    (cycle walking), at most three times on average. After Luby and Rackoff 1988 and Black and Rogaway 2002.

    Args:
        size: Number of elements, at least 1.
        key: Parts of the key; equal parts give the equal permutation on every machine.
    Raises:
        ValueError: if `size` is below 1.
    """

    def __init__(self, size: int, *key: object):
        if size < 1:
            raise ValueError(f"a permutation of {size} elements does not exist; size must be at least 1")
        self.size = size
        self.half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self.mask = (1 << self.half_bits) - 1
        self.key = hashlib.blake2b("\x1f".join(str(part) for part in key).encode(), digest_size=32).digest()

    def __call__(self, index: int) -> int:
        """The image of `index`, an integer in [0, size)."""
        if not 0 <= index < self.size:
            raise ValueError(f"index {index} lies outside of the permutation's {self.size} elements")
        while True:
            index = self.encrypt(index)
            if index < self.size:
                return index

    def encrypt(self, value: int) -> int:
        """One pass through the network, a bijection of [0, 4^half_bits)."""
        left, right = value >> self.half_bits, value & self.mask
        for number in range(ROUNDS):
            message = number.to_bytes(1, "little") + right.to_bytes(8, "little")
            digest = hashlib.blake2b(message, key=self.key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & self.mask)
        return (left << self.half_bits) | right
