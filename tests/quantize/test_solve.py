"""The joint search: against brute force, against a plain GPTQ, and step by step never uphill."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize.references import best_integers, loss, plain_gptq, problem, random_mask

from edgeslim.pruning.patterns import NM, Unstructured, keep_mask
from edgeslim.pruning.solve import solve_exact
from edgeslim.quantize.descent import descend
from edgeslim.quantize.gptq import gptq
from edgeslim.quantize.grid import Grid, dequantize, nearest, spread
from edgeslim.quantize.pairs import step_pairs, swap_places
from edgeslim.quantize.scales import search_all
from edgeslim.quantize.solve import quantize

ROUNDING = 1e-9  # relative: sums in another order, float64
BRUTE = 1.1  # of the least loss of all assignments: how near the joint search comes on average on rows of six


def _start(rows: int, inputs: int, kept: int, grid: Grid, seed: int) -> tuple[torch.Tensor, ...]:
    w, system = problem(rows, inputs, seed)
    keep = random_mask(rows, inputs, kept, seed)
    scales = search_all(w * keep, system.h.diagonal(), grid)
    codes = nearest(w, spread(scales, grid, inputs), grid) * keep
    return w, system.h, keep, scales, codes


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("inputs", [50, 200])  # within a block of columns, and beyond it
def test_without_pruning_and_polish_it_is_gptq(bits: int, inputs: int) -> None:
    w, system = problem(5, inputs)
    grid = Grid(bits=bits, group=0)
    keep = torch.ones_like(w, dtype=torch.bool)
    found = quantize(w, keep, w, system, Unstructured(sparsity=0.0), grid, polish="none")
    assert torch.equal(found.codes.double(), plain_gptq(w, system.h, found.scales, grid))


def test_groups_get_their_scales_from_the_weights_as_the_sweep_leaves_them() -> None:
    w, system = problem(5, 96)
    grid = Grid(bits=3, group=32)
    codes, scales = gptq(w, system.u, torch.ones_like(w, dtype=torch.bool), grid)
    assert scales.shape == (5, 3)
    assert torch.equal(codes, plain_gptq(w, system.h, scales, grid))


@given(st.integers(1, 5), st.integers(4, 40), st.sampled_from([2, 3, 4]), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_descent_never_goes_uphill_and_stays_on_the_mask(rows: int, inputs: int, bits: int, seed: int) -> None:
    grid = Grid(bits=bits, group=8)
    w, h, keep, scales, codes = _start(rows, inputs, inputs // 2, grid, seed)
    lower = descend(codes, scales, w, h, keep, grid, passes=5)
    before, after = (loss(dequantize(q, scales, grid), w, h) for q in (codes, lower))
    assert bool((after <= before * (1 + ROUNDING)).all())
    assert not bool(lower[~keep].any())
    assert grid.lowest <= float(lower.min()) and float(lower.max()) <= grid.highest


def test_descent_ends_where_no_single_integer_can_improve() -> None:
    grid = Grid(bits=3, group=0)
    w, h, keep, scales, codes = _start(4, 12, 8, grid, 1)
    lower = descend(codes, scales, w, h, keep, grid, passes=100)
    least = loss(dequantize(lower, scales, grid), w, h)
    for row, j in torch.nonzero(keep).tolist():
        for value in range(grid.lowest, grid.highest + 1):
            other = lower.clone()
            other[row, j] = value
            assert loss(dequantize(other, scales, grid), w, h)[row] >= least[row] * (1 - ROUNDING)


def test_a_descent_across_blocks_of_columns_is_the_same_as_column_by_column() -> None:
    grid = Grid(bits=3, group=32)
    w, h, keep, scales, codes = _start(3, 300, 150, grid, 2)
    expected, steps = codes.clone(), spread(scales, grid, 300)
    for j in range(300):
        gradient = ((expected * steps - w) @ h)[:, j]
        goal = expected[:, j] - gradient / (h[j, j] * steps[:, j])
        expected[:, j] = torch.where(keep[:, j], goal.round().clamp(grid.lowest, grid.highest), expected[:, j])
    assert torch.equal(descend(codes, scales, w, h, keep, grid, passes=1), expected)


@given(st.integers(1, 5), st.integers(4, 40), st.sampled_from([2, 3, 4]), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_pairs_and_swaps_never_go_uphill_and_keep_the_counts(rows: int, inputs: int, bits: int, seed: int) -> None:
    grid = Grid(bits=bits, group=8)
    w, h, keep, scales, codes = _start(rows, inputs, inputs // 2, grid, seed)
    stepped = step_pairs(codes, scales, w, h, keep, grid)
    swapped, places = swap_places(stepped, scales, w, h, keep, grid, Unstructured(sparsity=0.5))
    losses = [loss(dequantize(q, scales, grid), w, h) for q in (codes, stepped, swapped)]
    assert bool((losses[1] <= losses[0] * (1 + ROUNDING)).all())
    assert bool((losses[2] <= losses[1] * (1 + ROUNDING)).all())
    assert not bool(stepped[~keep].any()) and not bool(swapped[~places].any())
    assert torch.equal(places.sum(1), keep.sum(1))
    assert grid.lowest <= float(swapped.min()) and float(swapped.max()) <= grid.highest


@pytest.mark.parametrize("inputs", [32, 30])  # whole groups, and a ragged last one
def test_swaps_stay_within_their_group_of_an_n_of_m_pattern(inputs: int) -> None:
    grid, pattern = Grid(bits=3, group=16), NM(n=2, m=4)
    w, system = problem(20, inputs)
    keep = keep_mask(torch.rand_like(w), pattern)
    scales = search_all(w * keep, system.h.diagonal(), grid)
    codes = nearest(w, spread(scales, grid, inputs), grid) * keep
    swapped, places = swap_places(codes, scales, w, system.h, keep, grid, pattern)
    assert not torch.equal(places, keep)
    groups = torch.nn.functional.pad(places, (0, -inputs % 4)).view(20, -1, 4).sum(2)
    assert torch.equal(groups, torch.nn.functional.pad(keep, (0, -inputs % 4)).view(20, -1, 4).sum(2))
    before, after = (loss(dequantize(q, scales, grid), w, system.h).sum() for q in (codes, swapped))
    assert after < before


def test_on_rows_of_six_it_comes_close_to_the_best_of_all_assignments() -> None:
    grid = Grid(bits=3, group=0)
    w, system = problem(24, 6, seed=5)
    keep = random_mask(24, 6, 4)
    start = solve_exact(w, system, keep)
    found = quantize(start, keep, w, system, Unstructured(sparsity=0.0), grid)
    losses = loss(found.weight, w, system.h)
    least = [best_integers(w[row], system.h, float(found.scales[row]), found.keep[row], grid) for row in range(len(w))]
    assert all(losses[row] >= least[row] * (1 - ROUNDING) for row in range(len(w)))
    assert float(losses.sum()) <= BRUTE * float(sum(least))


@pytest.mark.parametrize("pattern", [Unstructured(sparsity=0.5), NM(n=2, m=4), Unstructured(sparsity=0.0)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_step_of_the_search_pays_over_rounding(pattern: Unstructured | NM, bits: int) -> None:
    grid = Grid(bits=bits, group=16)
    w, system = problem(40, 64, seed=7)
    keep = keep_mask(w.abs(), pattern)
    solved = solve_exact(w, system, keep)
    scales = search_all(solved, system.h.diagonal(), grid)
    rounded = dequantize(nearest(solved, spread(scales, grid, 64), grid) * keep, scales, grid)
    losses = [float(loss(rounded, w, system.h).sum())]
    for polish in ("none", "fast", "best"):
        found = quantize(solved, keep, w, system, pattern, grid, polish=polish)  # type: ignore[arg-type]
        assert torch.equal(found.keep.sum(1), keep.sum(1))
        assert not bool(found.codes[~found.keep].any())
        losses.append(float(loss(found.weight, w, system.h).sum()))
    assert losses[1] < losses[0] * (1.0 if bits < 8 else 1.05)  # at 8 bits rounding is all but exact
    assert losses[2] <= losses[1] * (1 + ROUNDING)
    assert losses[3] <= losses[2] * 1.01  # later rounds start elsewhere: as good on average, not on every problem


def test_groups_of_rows_are_solved_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import edgeslim.quantize.solve as solve

    grid, pattern = Grid(bits=3, group=16), Unstructured(sparsity=0.5)
    w, system = problem(30, 32)
    keep = keep_mask(w.abs(), pattern)
    whole = quantize(w * keep, keep, w, system, pattern, grid)
    monkeypatch.setattr(solve, "MEMORY", 1)
    monkeypatch.setattr(solve, "FEWEST_ROWS", 7)
    parts = quantize(w * keep, keep, w, system, pattern, grid)
    assert torch.equal(parts.keep.sum(1), whole.keep.sum(1))
    losses = [loss(found.weight, w, system.h) for found in (whole, parts)]
    # Rows decouple, but for when a descent stops: that counts what moved in the group.
    assert torch.allclose(losses[0].sum(), losses[1].sum(), rtol=1e-2)
