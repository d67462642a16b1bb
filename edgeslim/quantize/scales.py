"""Scales of a grid: searched for the least weighted error, or fitted to given integers.

References
[1] Frantar et al., GPTQ (arXiv 2210.17323): scales fixed by the extremes of a group.
[2] Lin et al., AWQ (arXiv 2306.00978): clipping searched over shares of the extreme.

Letters
    w, q     weight and its integers, w is near q · s
    c        what an error of each input costs: of input j, c_j (w_j - q_j s)² [in]
    t, H     target and damped moments of the inputs, see edgeslim.pruning.statistics
    G        groups of a row
"""

import torch
from torch import Tensor

from edgeslim.quantize.grid import Grid, half_precision, nearest, spread

_STEPS = {2: 24, 3: 20, 4: 16, 8: 4}
_LEAST = {2: 0.2, 3: 0.35, 4: 0.5, 8: 0.9}
"""Shares of the scale at which nothing is clipped that the search tries, from `_LEAST` to one: the fewer bits, the more
clipping pays."""


def search_scales(w: Tensor, cost: Tensor, grid: Grid) -> Tensor:
    """The scale of each row with the least Σ c (w - q s)², of those tried.  w: [out, n]; cost: [n] -> [out, 1].

    Both signs are tried: which side of zero gets the extra step. Values are ones that half precision holds.
    """
    largest = w.abs().amax(1, keepdim=True) / -grid.lowest
    best = torch.full_like(largest, torch.inf)
    found = half_precision(largest)
    for share in torch.linspace(_LEAST[grid.bits], 1.0, _STEPS[grid.bits]).tolist():
        for sign in (1.0, -1.0):
            scale = half_precision(largest * (share * sign))
            error = ((nearest(w, scale, grid) * scale).sub_(w).square_() @ cost)[:, None]
            better = error < best
            best, found = torch.where(better, error, best), torch.where(better, scale, found)
    return found


def search_all(w: Tensor, cost: Tensor, grid: Grid) -> Tensor:
    """`search_scales` of every group of every row.  w: [out, in]; cost: [in] -> [out, groups]."""
    width = grid.width(w.shape[1])
    parts = zip(w.split(width, dim=1), cost.split(width), strict=True)
    return torch.cat([search_scales(part, share, grid) for part, share in parts], 1)


def fit_scales(codes: Tensor, scales: Tensor, target: Tensor, h: Tensor, grid: Grid) -> Tensor:
    """The scales that bring q · s closest to the target under H, all groups of a row at once.

    codes, target: [out, in]; scales: [out, groups], kept where all integers of a group are zero; h: [in, in]. In half
    precision, so rows whose rounded scales are no better than before keep the old ones: the objective never grows.
    """
    inputs, count = codes.shape[1], scales.shape[1]
    width = grid.width(inputs)
    padded = torch.nn.functional.pad(codes, (0, count * width - inputs)).view(codes.shape[0], count, width)
    gram, pull = _normal_equations(padded, target @ h, h, width)
    empty = (padded == 0).all(2)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal += 1e-6 * diagonal.amax(1, keepdim=True) + torch.finfo(h.dtype).tiny
    diagonal.masked_fill_(empty, 1.0)
    fitted = torch.linalg.solve(gram, pull[:, :, None])[:, :, 0]
    fitted = half_precision(torch.where(empty | (fitted == 0), scales, fitted))
    better = _loss(codes, fitted, target, h, grid) < _loss(codes, scales, target, h, grid)
    return torch.where(better[:, None], fitted, scales)


def _normal_equations(q: Tensor, goal: Tensor, h: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """q_a H_ab q_bᵀ of all groups a, b [out, G, G], and q_a (t H)_aᵀ [out, G].  q: [out, G, width]; goal: [out, in]."""
    rows, count, _ = q.shape
    gram = q.new_zeros(rows, count, count)
    pull = q.new_zeros(rows, count)
    for a, (band, part) in enumerate(zip(h.split(width), goal.split(width, dim=1), strict=True)):
        own = q[:, a, : band.shape[0]]
        through = torch.nn.functional.pad(own @ band, (0, count * width - h.shape[1])).view(rows, count, width)
        gram[:, a] = (through * q).sum(2)
        pull[:, a] = (own * part).sum(1)
    return gram, pull


def _loss(codes: Tensor, scales: Tensor, target: Tensor, h: Tensor, grid: Grid) -> Tensor:
    delta = codes * spread(scales, grid, codes.shape[1]) - target
    return ((delta @ h) * delta).sum(1)
