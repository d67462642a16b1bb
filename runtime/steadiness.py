"""Whether enough runs were measured: when the machine is warm, and how well a median is known."""

import statistics
from collections.abc import Sequence

import numpy as np

WARM = 0.02
"""How far the rates of two runs in a row may be apart where the machine is warm."""

KNOWN = 0.005
"""Standard error of a median, over the median, at which no more runs are needed."""

MOST_WARMUP, MOST_REPEATS = 4, 20
"""Runs that a warm-up may take more than it was asked for; times as many runs as were asked for at most."""

MOST_SECONDS = 90.0
"""After so long no more runs begin, where as many as were asked for are done."""

_MOST_LASTING = 0.9


def is_warm(rates: Sequence[float]) -> bool:
    """Return whether the last two of `rates` are alike."""
    return len(rates) >= 2 and abs(rates[-1] - rates[-2]) <= WARM * min(rates[-2:])


def is_known(rates: Sequence[float]) -> bool:
    """Return whether the median of `rates` is known well enough."""
    return len(rates) >= 2 and median_error(rates) <= KNOWN


def median_error(rates: Sequence[float]) -> float:
    """Return the standard error of the median of `rates` over the median: 1.253 of a deviation over the root of their
    number, the deviation taken from their quartiles (1.349 of it apart), as for normal noise.

    A disturbance that lasts makes neighbours alike, and n runs tell as much as n (1 - r) / (1 + r) independent ones, r
    the correlation of each with the next: the effective size of a sample of an autoregressive process.
    """
    low, high = (float(v) for v in np.percentile(rates, (25, 75)))
    deviation, lasting = (high - low) / 1.349, lasts(rates)
    effective = len(rates) * (1 - lasting) / (1 + lasting)
    return float(1.253 * deviation / effective**0.5 / statistics.median(rates))


def lasts(rates: Sequence[float]) -> float:
    """Return how much each of `rates` is like the one before: their ranks' correlation at a distance of one, between 0
    and 0.9."""
    if len(rates) < 4:
        return 0.0
    found = rank_correlation(rates[:-1], rates[1:])
    return 0.0 if found is None else min(max(found, 0.0), _MOST_LASTING)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's correlation of two series of equal length, None where one of them does not vary."""
    ranks = [np.searchsorted(np.sort(v), v, "left") + np.searchsorted(np.sort(v), v, "right") for v in (first, second)]
    if any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
