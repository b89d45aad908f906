"""Place of a rank in the layout: plain arithmetic in Megatron's order tp-cp-ep-dp-pp.

Neighbouring ranks share the matrices of a layer, so that tensor parallelism stays inside a node; pipeline stages are
farthest apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Position of a rank along each axis, from 0."""

    tensor: int
    context: int
    data: int
    pipeline: int


@dataclass(frozen=True, kw_only=True)
class RankGrid:
    """Sizes of the axes; tensor runs fastest, then context, then data, then pipeline."""

    tensor: int
    context: int
    data: int
    pipeline: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tensor * self.context * self.data * self.pipeline

    def coordinates(self, rank: int) -> Coordinates:
        """Position of a global rank.

        Raises:
            ValueError: if the rank is outside of the grid.
        """
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside of 0..{self.world_size - 1}")
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(tensor=tensor, context=context, data=data, pipeline=pipeline)

    def rank(self, position: Coordinates) -> int:
        """Global rank at a position.

        Raises:
            ValueError: if the position is outside of the grid.
        """
        for axis in ("tensor", "context", "data", "pipeline"):
            place, size = getattr(position, axis), getattr(self, axis)
            if not 0 <= place < size:
                raise ValueError(f"{axis} position {place} is outside of 0..{size - 1}")
        group = (position.pipeline * self.data + position.data) * self.context + position.context
        return group * self.tensor + position.tensor
