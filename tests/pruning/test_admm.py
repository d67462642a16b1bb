import pytest
from pruning.layers import all_masks, least_squares, random_layer, system_of
from torch import Tensor

from edgeslim.pruning.admm import Schedule, admm
from edgeslim.pruning.patterns import NM, Pattern, Unstructured, keep_mask
from edgeslim.pruning.scores import obs_scores
from edgeslim.pruning.solve import objective, solve_exact
from edgeslim.pruning.sparsegpt import sweep
from edgeslim.pruning.statistics import Factored

PATTERNS = [
    Unstructured(sparsity=0.5),
    Unstructured(sparsity=0.7),
    Unstructured(sparsity=0.5, scope="layer"),
    NM(n=2, m=4),
]


def loss(w: Tensor, system: Factored, keep: Tensor) -> float:
    return float(objective(solve_exact(w, system, keep), w, system.h).sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_admm_finds_better_masks_than_sweep_and_obs_score_on_correlated_inputs(pattern: Pattern) -> None:
    found, swept, scored = 0.0, 0.0, 0.0
    for seed in range(3):
        w, x = random_layer(32, 48, 200, seed)
        system = system_of(x)
        keep, _ = admm(w, system.h, pattern)
        assert int(keep.sum()) == int(keep_mask(w.abs(), pattern).sum())
        found += loss(w, system, keep)
        swept += loss(w, system, sweep(w, system.u, pattern)[1])
        scored += loss(w, system, keep_mask(obs_scores(w, system.inverse_diagonal), pattern))
    assert found < 0.95 * swept
    assert found < 0.95 * scored


def test_admm_comes_near_the_best_of_all_masks_of_tiny_rows() -> None:
    found, best = 0.0, 0.0
    for seed in range(4):
        w, x = random_layer(2, 8, 24, seed)
        system = system_of(x)
        keep, _ = admm(w, system.h, Unstructured(sparsity=0.5))
        found += loss(w, system, keep)
        for row in w.split(1):
            best += min(
                float(objective(least_squares(row, system.h, mask[None]), row, system.h)) for mask in all_masks(8, 4)
            )
    assert best <= found <= 1.25 * best


def test_the_weight_it_returns_lies_on_the_mask_and_near_the_optimum_there() -> None:
    w, x = random_layer(32, 48, 200)
    system = system_of(x)
    keep, d = admm(w, system.h, Unstructured(sparsity=0.5))
    assert not d[~keep].any()
    assert float(objective(d, w, system.h).sum()) <= 1.05 * loss(w, system, keep)


def test_steps_are_bounded_and_growth_slows_as_the_support_settles() -> None:
    w, x = random_layer(4, 12, 40)
    keep, _ = admm(w, system_of(x).h, NM(n=1, m=3), Schedule(steps=1))
    assert int(keep.sum()) == 4 * 4
    assert [Schedule().factor(moved) for moved in (0.2, 0.05, 0.001)] == [1.3, 1.2, 1.1]
