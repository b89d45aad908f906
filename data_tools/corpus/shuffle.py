"""The order of documents in a corpus, from a seed and the place of each document in the input.

Each document has a 64-bit key that depends on nothing but the seed, the number of its input file and the byte offset
of its record in the (decompressed) file, so any worker can compute the keys of any part of the input on its own, and
a shuffle in several passes can send documents to buckets by key. The corpus is in the order of (key, file, offset).
"""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def document_keys(seed: int, file_number: int, offsets: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Shuffle keys of documents of one input file.

    The key is output number ``offset`` of SplitMix64 started at s, where s is output number ``file_number`` of
    SplitMix64 started at ``seed``. Within a file no two keys are equal.

    Args:
        seed: 0 to 2^64 - 1.
        file_number: position of the file among the inputs, from 0.
        offsets: [n] uint64 byte offsets of the records.
    Returns:
        [n] uint64 keys.
    Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    state = _splitmix64(np.array([seed], dtype=np.uint64), np.array([file_number], dtype=np.uint64))
    return _splitmix64(state, offsets)


def shuffled_order(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Input positions in corpus order: by key, equal keys in the order of the input.

    Args:
        keys: [n] uint64 keys of the documents in the order of the input.
    Returns:
        [n] int64; entry i is the input position of document i of the corpus.
    """
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def _splitmix64(start: npt.NDArray[np.uint64], number: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # Arithmetic on uint64 arrays wraps around, as the generator wants it.
    mixed = start + (number + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
