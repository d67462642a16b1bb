import re

import pytest
import torch
from pruning.layers import random_layer
from torch import Tensor

from edgeslim.errors import PruneError, RecipeError
from edgeslim.pruning.methods import EFFORTS, METHODS, PruneConfig, dense_target, prune_matrix, relative_error
from edgeslim.pruning.mrp import MASK_RULES
from edgeslim.pruning.patterns import NM, Pattern, Unstructured, keep_mask
from edgeslim.pruning.statistics import InputStatistics, factor
from edgeslim.quantize.grid import Grid, dequantize

HALF = Unstructured(sparsity=0.5)


def correlated(rows: int = 48, inputs: int = 64, seed: int = 0) -> tuple[Tensor, InputStatistics]:
    w, x = random_layer(rows, inputs, 300, seed)
    return w, InputStatistics.of(x)


@pytest.mark.parametrize("pattern", [HALF, Unstructured(sparsity=0.7), NM(n=2, m=4)], ids=str)
def test_methods_rank_as_claimed_on_correlated_inputs(pattern: Pattern) -> None:
    w, stats = correlated()
    configs = {name: PruneConfig(method=name, pattern=pattern) for name in METHODS}  # type: ignore[arg-type]
    configs["fast"] = PruneConfig(pattern=pattern, effort="fast")
    error = {name: prune_matrix(w, stats, config).relative_error for name, config in configs.items()}
    assert error["mrp"] < error["fast"] < error["sparsegpt"] < min(error["wanda"], error["magnitude"])


@pytest.mark.parametrize("rule", MASK_RULES)
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_every_rule_and_solver_keeps_exactly_the_pattern(rule: str, solver: str) -> None:
    w, stats = correlated(5, 14)
    config = PruneConfig(pattern=NM(n=1, m=4), mask_rule=rule, solver=solver)  # type: ignore[arg-type]
    result = prune_matrix(w, stats, config)
    assert [int(group.sum()) for group in result.keep.split(4, dim=1)] == [5, 5, 5, 5]
    assert not result.weight[~result.keep].any()


def test_error_is_taken_of_the_stored_weight_by_the_undamped_moments() -> None:
    w, x = random_layer(6, 12, 40)
    w16 = w.to(torch.bfloat16)
    result = prune_matrix(w16, InputStatistics.of(x), PruneConfig(precision="float64"))
    assert result.weight.dtype == torch.bfloat16
    change, output = (result.weight.double() - w16.double()) @ x.T, w16.double() @ x.T
    expected = float(change.square().sum() / output.square().sum())
    assert result.relative_error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_dead_inputs_cost_nothing_and_leave_finite_weights(method: str) -> None:
    w, x = random_layer(6, 12, 40)
    x[:, 3:6] = 0
    result = prune_matrix(w, InputStatistics.of(x), PruneConfig(method=method))  # type: ignore[arg-type]
    assert torch.isfinite(result.weight).all()
    assert result.relative_error < 0.5
    if method in ("mrp", "sparsegpt"):
        assert not result.weight[:, 3:6].any()


def test_a_layer_without_any_live_input_is_pruned_and_reports_no_error() -> None:
    stats = InputStatistics.of(torch.zeros(4, 6))
    assert prune_matrix(torch.ones(2, 6), stats, PruneConfig()).relative_error == 0.0


def test_a_true_zero_on_the_mask_stays_in_the_mask() -> None:
    w, stats = correlated(3, 8)
    w[:] = 0
    result = prune_matrix(w, stats, PruneConfig(method="magnitude", pattern=HALF))
    assert int(result.keep.sum()) == 12


@pytest.mark.parametrize("rule", ["s", "progressive", "admm"])
def test_float32_reports_within_two_percent_of_float64(rule: str) -> None:
    w, stats = correlated()
    errors = [
        prune_matrix(w, stats, PruneConfig(mask_rule=rule, precision=precision)).relative_error  # type: ignore[arg-type]
        for precision in ("float32", "float64")
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)  # masks may differ where scores nearly tie


def test_dense_target_minimises_the_damped_distance_to_the_dense_output() -> None:
    w, x_dense = random_layer(4, 9, 30)
    x = x_dense + 0.3 * random_layer(1, 9, 30, seed=7)[1]
    stats = InputStatistics.of(x, x_dense)
    assert stats.c is not None
    system = factor(stats.h)
    target = dense_target(w, stats.h, stats.c, system, 1.0)

    def cost(t: Tensor) -> Tensor:
        change = 2 / 30 * (t @ x.T - w @ x_dense.T).square().sum()
        return change + system.gamma * (t - w).square().sum()

    target.requires_grad_()
    (slope,) = torch.autograd.grad(cost(target), target)
    assert float(slope.abs().max()) < 1e-9
    same = InputStatistics.of(x, x)
    torch.testing.assert_close(dense_target(w, same.h, same.h, system, 1.0), w)


def test_dense_target_repairs_what_earlier_layers_changed() -> None:
    w, x_dense = random_layer(24, 32, 400)
    noise = random_layer(1, 32, 400, seed=7)[1]
    x = x_dense + 0.5 * noise @ torch.diag(torch.linspace(0, 2, 32, dtype=torch.float64))
    stats = InputStatistics.of(x, x_dense)
    off = {}
    for target in ("pruned", "dense"):
        pruned = prune_matrix(w, stats, PruneConfig(target=target)).weight  # type: ignore[arg-type]
        off[target] = float((pruned @ x.T - w @ x_dense.T).square().sum())
    assert off["dense"] < 0.9 * off["pruned"]


def test_dense_target_needs_the_cross_moment() -> None:
    w, stats = correlated(3, 8)
    config = PruneConfig(target="dense")
    assert config.needs_cross_moment and not PruneConfig(method="wanda", target="dense").needs_cross_moment
    with pytest.raises(PruneError, match="needs statistics with a cross moment"):
        prune_matrix(w, stats, config)


def test_efforts_name_rules_and_solvers_and_explicit_ones_win() -> None:
    for effort, (rule, solver, _) in EFFORTS.items():
        config = PruneConfig(effort=effort)  # type: ignore[arg-type]
        assert (config.rule, config.solve_by) == (rule, solver)
    assert PruneConfig(mask_rule="s").rule == "s"
    assert PruneConfig(solver="cholesky").solve_by == "cholesky"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "wnda"},
            "method must be one of magnitude, wanda, sparsegpt, mrp, got 'wnda'; did you mean 'wanda'?",
        ),
        ({"mask_rule": "m"}, "mask_rule m needs an n:m pattern"),
        ({"effort": "slow"}, "effort must be one of fast, best, got 'slow'"),
        ({"damping": 0.0}, "damping must be in (0, 1), got 0.0"),
        ({"target_strength": 2.0}, "target_strength must be in [0, 1], got 2.0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_by_rule_and_value(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        PruneConfig(**options)  # type: ignore[arg-type]


def test_weights_and_statistics_that_do_not_fit_are_refused() -> None:
    w, stats = correlated(3, 8)
    with pytest.raises(PruneError, match="must cover the weight's inputs"):
        prune_matrix(w[:, :7], stats, PruneConfig())
    with pytest.raises(PruneError, match="weights must be finite"):
        prune_matrix(w * torch.nan, stats, PruneConfig())
    with pytest.raises(PruneError, match="0 tokens"):
        prune_matrix(w, InputStatistics(8), PruneConfig())


def test_pruning_is_deterministic_and_leaves_its_arguments_alone() -> None:
    w, stats = correlated()
    before, h = w.clone(), stats.h.clone()
    first, second = (prune_matrix(w, stats, PruneConfig(pattern=NM(n=2, m=4))) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(w, before) and torch.equal(stats.h, h)


def test_relative_error_of_a_silent_layer_is_zero() -> None:
    assert relative_error(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2)) == 0.0


def test_magnitude_compares_over_the_whole_layer() -> None:
    w, stats = correlated()
    w[0] *= 100
    keep = prune_matrix(w, stats, PruneConfig(method="magnitude", pattern=HALF)).keep
    assert torch.equal(keep, keep_mask(w.abs(), Unstructured(sparsity=0.5, scope="layer")))


@pytest.mark.parametrize("pattern", [Unstructured(sparsity=0.0), HALF, NM(n=2, m=4)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_on_the_grid_within_its_pattern(method: str, pattern: Pattern) -> None:
    w, stats = correlated(24, 40)
    grid = Grid(bits=3, group=16)
    result = prune_matrix(w, stats, PruneConfig(method=method, pattern=pattern, grid=grid))  # type: ignore[arg-type]
    assert result.on_grid is not None
    assert torch.equal(result.weight, dequantize(result.on_grid.codes, result.on_grid.scales, grid))
    assert torch.equal(result.on_grid.scales, result.on_grid.scales.half().to(result.weight))
    assert float(result.keep.double().mean()) == pytest.approx(pattern.density, abs=0.02)
    assert not result.weight[~result.keep].any()
    assert 0 < result.relative_error < 0.2


def test_the_grid_costs_little_beside_the_pruning_and_less_with_more_bits() -> None:
    w, stats = correlated()
    errors = [
        prune_matrix(w, stats, PruneConfig(pattern=HALF, grid=grid)).relative_error
        for grid in (None, *(Grid(bits=bits, group=16) for bits in (8, 4, 3, 2)))
    ]
    assert errors == sorted(errors)
    assert errors[1] < 1.01 * errors[0]
