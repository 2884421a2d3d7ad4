"""Intervals of 95 %."""

import math

NORMAL = 1.96
"""Half-width of a 95 % interval, in standard errors."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """Middle and half-width of the interval of a share of n rows, which is sane at 0 and 1 (Wilson 1927)."""
    # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    z, spread = NORMAL, max(0.0, share * (1.0 - share))
    return (n * share + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(n * spread + z * z / 4)
