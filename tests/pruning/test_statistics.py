import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.layers import random_layer

from edgeslim.errors import PruneError
from edgeslim.pruning.statistics import InputStatistics, factor


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_batches_of_any_size_give_the_moments_of_all_tokens(cuts: list[int]) -> None:
    _, x = random_layer(1, 5, 40, seed=1)
    _, dense = random_layer(1, 5, 40, seed=2)
    stats = InputStatistics(5, cross=True, dtype=torch.float64)
    edges = [0, *sorted(cuts), 40]
    for first, last in itertools.pairwise(edges):
        stats.add(x[first:last], dense[first:last])
    assert stats.tokens == 40
    assert stats.c is not None
    torch.testing.assert_close(stats.h, 2 / 40 * x.T @ x)
    torch.testing.assert_close(stats.c, 2 / 40 * dense.T @ x)
    torch.testing.assert_close(stats.mean_square, x.square().mean(0))


def test_leading_axes_are_tokens_and_sums_are_taken_in_float32() -> None:
    stats = InputStatistics(3)
    stats.add(torch.ones(2, 4, 3, dtype=torch.bfloat16))
    assert stats.tokens == 8 and stats.h.dtype == torch.float32
    assert stats.h.tolist() == [[2.0] * 3] * 3


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PruneError, match="must have 3 features"):
        InputStatistics(3).add(torch.ones(2, 4))
    with pytest.raises(PruneError, match="expected x_dense"):
        InputStatistics(3, cross=True).add(torch.ones(2, 3))


def test_factor_damps_relative_to_the_mean_diagonal_and_inverts() -> None:
    _, x = random_layer(1, 9, 4)  # fewer tokens than inputs: X Xᵀ is singular
    h = InputStatistics.of(x).h
    system = factor(h, 0.01)
    eye = torch.eye(9, dtype=h.dtype)
    assert system.gamma == pytest.approx(0.01 * float(h.diagonal().mean()))
    torch.testing.assert_close(system.h, h + system.gamma * eye)
    torch.testing.assert_close(system.inverse @ system.h, eye, atol=1e-9, rtol=0)
    torch.testing.assert_close(system.inverse_diagonal, system.inverse.diagonal())
    assert torch.equal(system.u, system.u.triu())


def test_dead_inputs_do_not_change_what_the_others_see() -> None:
    _, x = random_layer(1, 6, 30)
    x[:, 2] = 0
    stats = InputStatistics.of(x)
    alive = [0, 1, 3, 4, 5]
    assert stats.dead.nonzero().tolist() == [[2]]
    whole, part = factor(stats.h), factor(stats.h[alive][:, alive])
    torch.testing.assert_close(whole.inverse[alive][:, alive], part.inverse)


def test_failed_cholesky_damps_ten_times_as_much_and_says_so() -> None:
    h = torch.diag(torch.tensor([1.0, 1.0, -0.05], dtype=torch.float64)) + 0.0
    h[2, 2], h[0, 1], h[1, 0] = 1.0, 1.05, 1.05  # smallest eigenvalue -0.05
    with pytest.warns(UserWarning, match="trying ten times as much"):
        system = factor(h, 0.01)
    assert system.gamma == pytest.approx(0.1)


def test_hopeless_statistics_are_an_error() -> None:
    h = torch.full((2, 2), 100.0) - 99 * torch.eye(2)
    with pytest.warns(UserWarning, match="ten times"), pytest.raises(PruneError, match="not positive definite"):
        factor(h)
    with pytest.raises(PruneError, match="finite"):
        factor(torch.full((2, 2), torch.nan))
