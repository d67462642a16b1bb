"""When a machine is warm, and when a median is known."""

import numpy as np
import pytest

from edgeslim.runtime.steadiness import KNOWN, is_known, is_warm, lasts, median_error, rank_correlation


def test_two_runs_alike_are_warm_and_one_is_not():
    assert is_warm([50.0, 100.0, 101.9]) and is_warm([101.9, 100.0])
    assert not is_warm([100.0, 102.1]) and not is_warm([100.0]) and not is_warm([])


def test_the_error_of_a_median_is_what_medians_of_samples_really_scatter_by():
    rng = np.random.default_rng(0)
    samples = rng.normal(100.0, 5.0, (4000, 25))
    scatter = np.std(np.median(samples, axis=1)) / 100.0
    assert np.median([median_error(list(s)) for s in samples]) == pytest.approx(scatter, rel=0.1)


def test_a_median_is_known_after_few_steady_runs_or_many_unsteady_ones_and_never_after_one():
    unsteady = [95.0, 105.0, 98.0, 102.0, 100.0]
    assert is_known([100.0, 100.5, 100.2]) and not is_known(unsteady) and is_known(unsteady * 12)
    assert not is_known([100.0])
    assert median_error(unsteady) > KNOWN


def test_a_single_run_that_was_disturbed_does_not_matter():
    assert is_known([100.0, 100.1, 99.9, 100.2, 40.0])


def test_runs_that_a_lasting_disturbance_makes_alike_tell_less():
    rng = np.random.default_rng(0)
    slow, medians, errors = 0.8, [], []
    for _ in range(600):
        noise = rng.normal(0.0, 3.0, 60)
        for n in range(1, 60):
            noise[n] = slow * noise[n - 1] + (1 - slow**2) ** 0.5 * noise[n]
        medians.append(np.median(100.0 + noise))
        errors.append(median_error(list(100.0 + noise)))
    assert np.median(errors) == pytest.approx(np.std(medians) / 100.0, rel=0.3)
    assert lasts([100.0, 101.0, 100.0, 101.0, 100.0]) == 0.0


def test_the_rank_correlation_is_spearman_s():
    rng = np.random.default_rng(1)
    first = rng.integers(0, 8, 50).astype(float)
    second = first + rng.integers(0, 6, 50)
    ranked = [np.array([np.mean(np.flatnonzero(np.sort(v) == each)) for each in v]) for v in (first, second)]
    assert rank_correlation(list(first), list(second)) == pytest.approx(np.corrcoef(*ranked)[0, 1])
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
