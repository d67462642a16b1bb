"""Slow, obvious versions of what `edgeslim.quantize` does, and random problems to compare on."""

import itertools

import torch
from torch import Tensor

from edgeslim.pruning.statistics import Factored, InputStatistics, factor
from edgeslim.quantize.grid import Grid


def problem(rows: int, inputs: int, seed: int = 0) -> tuple[Tensor, Factored]:
    """A weight [rows, inputs] and the damped moments of correlated inputs, float64."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=g, dtype=torch.float64) / inputs**0.5
    spectrum = torch.arange(1, inputs + 1, dtype=torch.float64) ** -0.5
    x = torch.randn(4 * inputs, inputs, generator=g, dtype=torch.float64) * spectrum @ mix
    weight = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    return weight, factor(InputStatistics.of(x).h)


def random_mask(rows: int, inputs: int, kept: int, seed: int = 0) -> Tensor:
    """A mask [rows, inputs] with `kept` places in each row."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, inputs, generator=g).argsort(1).argsort(1) < kept


def loss(w: Tensor, target: Tensor, h: Tensor) -> Tensor:
    """½ (w - t) H (w - t)ᵀ of each row: [rows]."""
    return torch.stack([0.5 * d @ h @ d for d in w - target])


def best_integers(target: Tensor, h: Tensor, scale: float, keep: Tensor, grid: Grid) -> Tensor:
    """The least loss of one row [in] over all integers on its mask, by trying every assignment."""
    places = torch.nonzero(keep)[:, 0]
    values = range(grid.lowest, grid.highest + 1)
    tried = torch.zeros(len(values) ** len(places), len(target), dtype=target.dtype)
    tried[:, places] = torch.tensor(list(itertools.product(values, repeat=len(places))), dtype=target.dtype)
    return loss(tried * scale, target.expand_as(tried), h).min()


def plain_gptq(w: Tensor, h: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """Integers by GPTQ as the paper has it: freeze a column, update the others by the inverse of what is left of H."""
    w = w.clone()
    codes = torch.zeros_like(w)
    width = grid.width(w.shape[1])
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(h[j:, j:])
        scale = scales[:, j // width]
        codes[:, j] = (w[:, j] / scale).round().clamp(grid.lowest, grid.highest)
        error = (w[:, j] - codes[:, j] * scale) / inverse[0, 0]
        w[:, j:] -= error[:, None] * inverse[0]
    return codes
