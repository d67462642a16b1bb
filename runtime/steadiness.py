"""Whether enough runs were measured: when the machine is warm, and how well a median is known."""

import statistics
from collections.abc import Sequence

import numpy as np

WARM = 0.02
"""How far the rates of two runs in a row may be apart where the machine is warm."""

KNOWN = 0.01
"""Standard error of a median, over the median, at which no more runs are needed."""

MOST_WARMUP, MOST_REPEATS = 4, 6
"""Runs that a warm-up may take more than it was asked for; times as many counted runs as were asked for at most."""


def is_warm(rates: Sequence[float]) -> bool:
    """Return whether the last two of `rates` are alike."""
    return len(rates) >= 2 and abs(rates[-1] - rates[-2]) <= WARM * min(rates[-2:])


def is_known(rates: Sequence[float]) -> bool:
    """Return whether the median of `rates` is known well enough."""
    return len(rates) >= 2 and median_error(rates) <= KNOWN


def median_error(rates: Sequence[float]) -> float:
    """Return the standard error of the median of `rates` over the median: 1.253 of a deviation over the root of their
    number, the deviation taken from their quartiles (1.349 of it apart), as for normal noise."""
    low, high = (float(v) for v in np.percentile(rates, (25, 75)))
    deviation = (high - low) / 1.349
    return float(1.253 * deviation / len(rates) ** 0.5 / statistics.median(rates))
