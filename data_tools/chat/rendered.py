"""A dialogue as a model sees it: token ids, and which of them it learns to say."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The tokens of a dialogue and its loss mask.

    Attributes:
        tokens: [n] int32 ids.
        targets: [n] bool; where it is true the token is learned, as the label of the position before it.
    """

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Raises ValueError if the two differ in shape, which is a bug of whoever made them."""
        if self.tokens.ndim != 1 or self.tokens.shape != self.targets.shape:
            raise ValueError(f"tokens {self.tokens.shape} and targets {self.targets.shape} must be of one length")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_targets(self) -> int:
        """How many tokens are learned; a target at position 0 is not, for nothing comes before it."""
        return int(np.count_nonzero(self.targets[1:]))


def rendered(tokens: list[int], targets: list[bool]) -> Rendered:
    """The same from lists."""
    return Rendered(tokens=np.array(tokens, dtype=np.int32), targets=np.array(targets, dtype=np.bool_))
