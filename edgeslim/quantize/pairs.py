"""Two integers of a row moved at once, where no single move helps any more: pairs of steps, exchanges of mask places.

Moving weights i and j by δ_i and δ_j changes a row's error by  a_i + a_j + δ_i δ_j H_ij,  a_i = δ_i E_i + ½ δ_i² H_ii
being what the move of i alone costs. Of the cheapest moves of each row every pair is looked at, the best made, and so
on, until no pair of any row lowers the objective ½ (w - t) H (w - t)ᵀ.

    swap    i loses its place in the mask (δ_i = -w_i), j gets one: counts of a row, and of its n:m group, stay
    step    i and j go one step of the grid each, both in the mask

Letters
    E        (w - t) H [out, in]
    q, s     integers and scales, w = q · s on the mask [out, in]
    k        moves of a row that are looked at
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslim.pruning.patterns import NM, Pattern
from edgeslim.quantize.grid import Grid, dequantize, nearest, spread

CANDIDATES = 12
MOST_ROUNDS = 64


@dataclass(frozen=True)
class _Moves:
    """Moves of some rows: which input, to which integer, what it costs alone.  All [rows, k]."""

    place: Tensor
    integer: Tensor
    cost: Tensor


@dataclass(frozen=True)
class _State:
    """What moves are chosen by, of some rows.  h: [in, in]; all others [rows, in]."""

    q: Tensor
    step: Tensor
    gradient: Tensor
    keep: Tensor
    h: Tensor

    def rows(self, chosen: Tensor) -> "_State":
        return _State(self.q[chosen], self.step[chosen], self.gradient[chosen], self.keep[chosen], self.h)

    def cost_of(self, integer: Tensor) -> Tensor:
        """What it costs to move each weight, alone, to `integer`: [rows, in]."""
        delta = (integer - self.q) * self.step
        return delta * self.gradient + 0.5 * delta.square() * self.h.diagonal()


_Chooser = Callable[[_State], tuple[_Moves, _Moves]]


def swap_places(
    codes: Tensor, scales: Tensor, target: Tensor, h: Tensor, keep: Tensor, grid: Grid, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Integers and mask after every exchange of a kept with a pruned weight that lowers the objective.

    codes, target, keep: [out, in]; scales: [out, groups]; h: [in, in].
    """
    size = pattern.m if isinstance(pattern, NM) else codes.shape[1]
    state = _state(codes, scales, target, h, keep, grid)
    _improve_(state, lambda part: _drops_and_adds(part, grid, size), swap=True, paired=isinstance(pattern, NM))
    return state.q, state.keep


def step_pairs(codes: Tensor, scales: Tensor, target: Tensor, h: Tensor, keep: Tensor, grid: Grid) -> Tensor:
    """Integers after every pair of single steps within the mask that lowers the objective. Shapes: `swap_places`."""
    state = _state(codes, scales, target, h, keep, grid)
    _improve_(state, lambda part: (_steps(part, grid),) * 2, swap=False, paired=False)
    return state.q


def _state(codes: Tensor, scales: Tensor, target: Tensor, h: Tensor, keep: Tensor, grid: Grid) -> _State:
    gradient = (dequantize(codes, scales, grid) - target) @ h
    return _State(codes.clone(), spread(scales, grid, codes.shape[1]), gradient, keep.clone(), h)


def _improve_(state: _State, choose: _Chooser, *, swap: bool, paired: bool) -> None:
    """Make the best pair of moves of every row, until none helps; `paired`: only the n-th of one with the n-th of the
    other."""
    rows = torch.arange(state.q.shape[0], device=state.q.device)
    least = -1e-6 * (state.step.square() @ state.h.diagonal()) / state.q.shape[1]  # less is rounding
    for _ in range(MOST_ROUNDS):
        part = state.rows(rows)
        first, second = choose(part)
        gain, i, j = _best_pair(part, first, second, paired=paired)
        helps = gain < least[rows]
        rows = rows[helps]
        if not rows.numel():
            return
        for moves, which in ((first, i), (second, j)):
            place = moves.place.gather(1, which)[helps, 0]
            _move_(state, rows, place, moves.integer.gather(1, which)[helps, 0])
            if swap:
                state.keep[rows, place] = moves is second


def _move_(state: _State, rows: Tensor, place: Tensor, integer: Tensor) -> None:
    delta = (integer - state.q[rows, place]) * state.step[rows, place]
    state.gradient[rows] += delta[:, None] * state.h[place]
    state.q[rows, place] = integer


def _best_pair(part: _State, first: _Moves, second: _Moves, *, paired: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Change of the objective by the best pair of each row [rows], and its numbers in both lists, each [rows, 1]."""
    deltas = [(m.integer - part.q.gather(1, m.place)) * part.step.gather(1, m.place) for m in (first, second)]
    if paired:
        change = first.cost + second.cost + deltas[0] * deltas[1] * part.h[first.place, second.place]
        best = change.min(1)
        return best.values, best.indices[:, None], best.indices[:, None]
    mixed = deltas[0][:, :, None] * deltas[1][:, None, :] * part.h[first.place[:, :, None], second.place[:, None, :]]
    change = first.cost[:, :, None] + second.cost[:, None, :] + mixed
    change.masked_fill_(first.place[:, :, None] == second.place[:, None, :], torch.inf)
    best = change.flatten(1).min(1)
    count = second.place.shape[1]
    return best.values, (best.indices // count)[:, None], (best.indices % count)[:, None]


def _steps(part: _State, grid: Grid) -> _Moves:
    """The single steps that cost least for their size."""
    up, down = part.q + 1, part.q - 1
    costs = [
        part.cost_of(integer).masked_fill(~part.keep | (integer < grid.lowest) | (integer > grid.highest), torch.inf)
        for integer in (up, down)
    ]
    cost = torch.minimum(*costs)
    integer = torch.where(costs[0] <= costs[1], up, down)
    place = _cheapest(cost / (part.step.square() * part.h.diagonal()))
    return _Moves(place, integer.gather(1, place), cost.gather(1, place))


def _drops_and_adds(part: _State, grid: Grid, size: int) -> tuple[_Moves, _Moves]:
    """The cheapest kept weights to lose and pruned ones to get; one of each for every group of `size` inputs, where
    that is less than the row."""
    goal = -part.gradient / part.h.diagonal()
    new = nearest(goal, part.step, grid)
    other = torch.where(goal * part.step < 0, -1.0, 1.0).to(new)  # of a place in the mask that would stay zero
    new = torch.where(new == 0, other.clamp(grid.lowest, grid.highest), new)
    none = torch.zeros_like(new)
    drop = part.cost_of(none).masked_fill(~part.keep, torch.inf)
    add = part.cost_of(new).masked_fill(part.keep, torch.inf)
    whole_rows = size >= part.q.shape[1]
    places = (_cheapest(drop), _cheapest(add)) if whole_rows else _cheapest_of_groups(drop, add, size)
    moves = [
        _Moves(place, integer.gather(1, place), cost.gather(1, place))
        for place, integer, cost in zip(places, (none, new), (drop, add), strict=True)
    ]
    return moves[0], moves[1]


def _cheapest(cost: Tensor) -> Tensor:
    return cost.topk(min(CANDIDATES, cost.shape[1]), dim=1, largest=False).indices


def _cheapest_of_groups(drop: Tensor, add: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Places of the best drop and add of the groups where both together cost least: two of [rows, k]."""
    rows, inputs = drop.shape
    padding = (0, -inputs % size)
    least = [
        torch.nn.functional.pad(cost, padding, value=torch.inf).view(rows, -1, size).min(2) for cost in (drop, add)
    ]
    groups = _cheapest(least[0].values + least[1].values)
    first, second = ((groups * size + part.indices.gather(1, groups)).clamp(max=inputs - 1) for part in least)
    return first, second
