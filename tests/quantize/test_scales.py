"""Scales: searched ones beat the extremes, fitted ones are the least squares of the given integers."""

import torch
from quantize.references import loss, problem, random_mask

from edgeslim.quantize.grid import Grid, dequantize, nearest, spread
from edgeslim.quantize.scales import fit_scales, search_all

HALF = 2e-3  # of a loss: what rounding scales to half precision may cost


def test_searched_scales_are_no_worse_than_those_of_the_extremes() -> None:
    w, system = problem(20, 64)
    cost = system.h.diagonal()
    for bits in (2, 3, 4, 8):
        grid = Grid(bits=bits, group=32)
        scales = search_all(w, cost, grid)
        extremes = w.view(20, 2, 32).abs().amax(2) / -grid.lowest
        error, plain = (
            ((nearest(w, spread(s, grid, 64), grid) * spread(s, grid, 64) - w).square() @ cost).sum()
            for s in (scales, extremes)
        )
        assert error <= plain * (1 + HALF)


def test_fitted_scales_are_the_least_squares_of_the_integers() -> None:
    w, system = problem(6, 20)
    grid = Grid(bits=4, group=8)
    scales = search_all(w, system.h.diagonal(), grid)
    codes = nearest(w, spread(scales, grid, 20), grid)
    fitted = fit_scales(codes, scales, w, system.h, grid)
    root = torch.linalg.cholesky(system.h).T
    for row in range(6):
        columns = torch.stack([codes[row] * (torch.arange(20) // 8 == g) for g in range(3)], 1)
        exact = torch.linalg.lstsq(root @ columns, (root @ w[row])[:, None]).solution[:, 0]
        assert torch.allclose(fitted[row], exact, rtol=HALF, atol=1e-6)


def test_fitting_never_raises_the_loss_and_leaves_groups_of_zeros_alone() -> None:
    w, system = problem(30, 40, seed=3)
    grid, keep = Grid(bits=2, group=16), random_mask(30, 40, 6)
    scales = search_all(w * keep, system.h.diagonal(), grid)
    codes = nearest(w, spread(scales, grid, 40), grid) * keep
    codes[:, :16] = 0
    fitted = fit_scales(codes, scales, w, system.h, grid)
    assert torch.equal(fitted[:, 0], scales[:, 0])
    before, after = (loss(dequantize(codes, s, grid), w, system.h) for s in (scales, fitted))
    assert bool((after <= before).all()) and float(after.sum()) < float(before.sum())
