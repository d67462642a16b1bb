"""Exactness on one damped objective, in float64 unless said otherwise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning.layers import layers, least_squares, patterns, random_layer, system_of
from torch import Tensor

from edgeslim.errors import PruneError
from edgeslim.pruning.patterns import Pattern, Unstructured, keep_mask
from edgeslim.pruning.solve import objective, solve_cg, solve_exact
from edgeslim.pruning.sparsegpt import sweep
from edgeslim.pruning.statistics import Factored, factor

EXACT = 1e-6  # relative excess of the Cholesky solver's objective
EXCESS = 1e-3  # of conjugate gradients at their default tolerance of 5e-4, on layers like those of models
WORST = 2e-2  # the same on any input: what remains is foreseen from past steps, and near rank one these may mislead


def total(w: Tensor, target: Tensor, system: Factored) -> float:
    return float(objective(w, target, system.h).sum())


@settings(deadline=None, max_examples=40)
@given(layer=layers(), pattern=patterns(), seed=st.integers(0, 999), memory=st.sampled_from([1, 5000, 1 << 20]))
def test_cholesky_equals_least_squares_on_the_kept_support(
    layer: tuple[Tensor, Tensor], pattern: Pattern, seed: int, memory: int
) -> None:
    w, x = layer
    system = system_of(x)
    keep = keep_mask(torch.rand(w.shape, generator=torch.Generator().manual_seed(seed)), pattern)
    solved, fitted = solve_exact(w, system, keep, memory), least_squares(w, system.h, keep)
    assert not solved[~keep].any()
    scale = total(torch.zeros_like(w), w, system)
    assert total(solved, w, system) == pytest.approx(total(fitted, w, system), rel=EXACT, abs=1e-12 * scale)


@settings(deadline=None, max_examples=40)
@given(layer=layers(), pattern=patterns(), warm=st.booleans())
def test_conjugate_gradients_reach_the_exact_optimum_within_their_tolerance(
    layer: tuple[Tensor, Tensor], pattern: Pattern, warm: bool
) -> None:
    w, x = layer
    system = system_of(x)
    start, keep = sweep(w, system.u, pattern)
    best = total(solve_exact(w, system, keep), w, system)
    scale = total(torch.zeros_like(w), w, system)
    for tolerance, bound in ((5e-4, WORST), (1e-12, 1e-6)):
        solved = solve_cg(w, system.h, keep, start if warm else None, tolerance)
        assert not solved[~keep].any()
        assert total(solved, w, system) <= best * (1 + bound) + 1e-10 * scale


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_conjugate_gradients_leave_under_a_thousandth_on_layers_like_those_of_models(
    decay: float, sparsity: float
) -> None:
    w, x = random_layer(64, 128, 512, decay=decay)
    system = system_of(x)
    keep = keep_mask(w.abs(), Unstructured(sparsity=sparsity))
    best = total(solve_exact(w, system, keep), w, system)
    for start in (None, w * keep):
        assert total(solve_cg(w, system.h, keep, start), w, system) <= best * (1 + EXCESS)


@settings(deadline=None, max_examples=40)
@given(layer=layers(), pattern=patterns())
def test_no_shared_mask_makes_the_sweep_or_the_bare_mask_better_than_the_joint_solve(
    layer: tuple[Tensor, Tensor], pattern: Pattern
) -> None:
    w, x = layer
    system = system_of(x)
    swept, keep = sweep(w, system.u, pattern)
    best = total(solve_exact(w, system, keep), w, system)
    slack = 1e-12 * total(torch.zeros_like(w), w, system)
    assert best <= total(swept, w, system) * (1 + EXACT) + slack
    assert best <= total(w * keep, w, system) * (1 + EXACT) + slack


def test_one_pruned_weight_gives_optimal_brain_surgeon() -> None:
    w, x = random_layer(3, 7, 30)
    system = system_of(x)
    keep = torch.ones_like(w, dtype=torch.bool)
    keep[:, 4] = False
    inverse = system.inverse
    expected = w - w[:, 4:5] * inverse[4] / inverse[4, 4]
    torch.testing.assert_close(solve_exact(w, system, keep), expected * keep)


def test_rows_that_share_masks_share_solves_and_agree_with_rows_solved_alone() -> None:
    w, x = random_layer(8, 10, 6)
    system = system_of(x)
    one, other = keep_mask(w[:2].abs(), Unstructured(sparsity=0.6))
    keep = torch.stack([one, other] * 4)
    alone = torch.cat([solve_exact(w[i : i + 1], system, keep[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(solve_exact(w, system, keep), alone)


def test_rows_without_a_kept_or_a_pruned_weight_are_solved_too() -> None:
    w, x = random_layer(3, 5, 20)
    keep = torch.tensor([[True] * 5, [False] * 5, [True, False] * 2 + [True]])
    system = system_of(x)
    for solved in (solve_exact(w, system, keep), solve_cg(w, system.h, keep, tolerance=1e-12)):
        torch.testing.assert_close(solved[0], w[0])
        assert not solved[1].any()


def test_a_kept_weight_that_is_zero_stays_free() -> None:
    w, x = random_layer(1, 4, 20)
    w[0, 1] = 0
    keep = torch.tensor([[False, True, True, True]])
    assert solve_exact(w, system_of(x), keep)[0, 1] != 0


def test_cholesky_goes_on_in_float64_where_float32_fails_and_refuses_what_is_singular() -> None:
    ones = torch.ones(4, 4)
    barely = Factored(ones + 1e-9 * torch.eye(4), torch.eye(4), 0.0)  # singular once rounded to float32
    keep = torch.tensor([[True, True, False, False]])
    with pytest.raises(PruneError, match="singular in spite of the damping"):
        solve_exact(torch.ones(1, 4), barely, keep)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), decay=st.sampled_from([0.0, 1.0, 2.0]), tokens=st.sampled_from([20, 200]))
def test_float32_solves_stay_within_one_thousandth_of_float64(seed: int, decay: float, tokens: int) -> None:
    w, x = random_layer(8, 64, tokens, seed, decay)
    system, single = system_of(x), factor(system_of(x).h.float())
    keep = keep_mask(w.abs(), Unstructured(sparsity=0.5))
    best = total(solve_exact(w, system, keep), w, system)
    single = factor((2 / tokens * x.T @ x).float())
    exact = solve_exact(w.float(), single, keep).double()
    by_cg = solve_cg(w.float(), single.h, keep, tolerance=1e-5).double()
    assert total(exact, w, system) <= best * (1 + 1e-4)
    assert total(by_cg, w, system) <= best * (1 + 1e-3)
