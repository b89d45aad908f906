"""How sure a share is that was counted in a sample."""

from __future__ import annotations

import math

# Of a normal distribution, two-sided 95 %.
Z_95 = 1.959963984540054


def wilson_interval(right: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The interval that holds the true share with the confidence of `z`, for a share of `right` in `count`.

    Unlike the usual interval it stays within 0 and 1 and has a width where all or none are right.

    Args:
        right: Those that count, from 0 to `count`; halves for ties are allowed.
        count: Independent draws; for 0 nothing is known.
        z: Standard deviations of a normal distribution on either side.
    Returns:
        Lower and upper bound.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return 0.0, 1.0
    share = right / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    # Exact where none or all are right, where rounding would leave the share outside.
    return 0.0 if right == 0 else centre - half, 1.0 if right == count else centre + half
