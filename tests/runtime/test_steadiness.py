"""When a machine is warm, and when a median is known."""

import numpy as np
import pytest

from edgeslim.runtime.steadiness import KNOWN, is_known, is_warm, median_error


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
