"""What becomes of a branch in one step: `edgeslim.tokens.step` as nodes.

There a destination's row is ``own x_n + sum w_i x_i`` over the removed rows i that go to n, and own + sum w_i = 1. Here
that is ``x_n + sum w_i (x_i - x_n)``, which touches those rows alone.

Letters: B batch, N tokens before, K after, r = N - K removed, H channels.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.tokens.matching import pick, take, up_to
from edgeslim.exporters.tokens.ops import FLOAT, INT64, Ops, size

_SMALLEST = 150  # 2^-150 is zero in float32


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Of each removed row `weights` [B, r] go to its destination, whose own share is what is left of 1.

    `largest` [1], where given, lets only that many of the removed rows count in each channel.
    """

    weights: ir.Value
    largest: ir.Value | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Positions of one step: kept [B, K], ascending; removed [B, r]; destinations [B, r], and `slots` [B, r], which of
    the kept rows these are. Where nothing is mixed, both mixings and the last two are None."""

    kept: ir.Value
    removed: ir.Value
    destinations: ir.Value | None = None
    slots: ir.Value | None = None
    hidden: Mixing | None = None
    residual: Mixing | None = None


def mixed_sum(ops: Ops, branch: ir.Value, residual: ir.Value, step: Step) -> ir.Value:
    """Return the sum of both branches [B, N, H] after the step, [B, K, H], in the original order."""
    kept = take(ops, ops.Add(branch, residual), step.kept)
    found = [_changes(ops, x, step, mixing) for x, mixing in ((branch, step.hidden), (residual, step.residual))]
    changes = [change for change in found if change is not None]
    if not changes or step.slots is None:
        return kept
    change, slots = changes[0], step.slots
    if len(changes) > 1:
        change, slots = ops.Concat(*changes, axis=1), ops.Concat(slots, slots, axis=1)
    index = ops.Expand(ops.Unsqueeze(slots, [-1]), ops.Shape(change))
    return ops.ScatterElements(kept, index, change, axis=1, reduction="add")


def _changes(ops: Ops, x: ir.Value, step: Step, mixing: Mixing | None) -> ir.Value | None:
    """Return what is added to the destinations in the branch `x`: [B, r, H]."""
    if mixing is None or step.destinations is None:
        return None
    gone = take(ops, x, step.removed)
    if mixing.largest is not None:
        gone = _largest_of_each_channel(ops, gone, mixing.largest)
    return ops.Mul(ops.Sub(gone, take(ops, x, step.destinations)), ops.Unsqueeze(mixing.weights, [-1]))


def slots_of(ops: Ops, destinations: ir.Value, removed: ir.Value, tokens: ir.Value) -> ir.Value:
    """Return which of the rows that stay `destinations` [B, r] are: so many less than their position as went before."""
    nothing = ops.Mul(up_to(ops, removed, tokens), 0)
    gone = ops.ScatterElements(nothing, removed, ops.Expand(1, ops.Shape(removed)), axis=1)
    return ops.Sub(destinations, pick(ops, ops.CumSum(gone, 1), destinations))


def pairwise_merging(ops: Ops, destinations: ir.Value, merged: ir.Value) -> Mixing:
    """Return what merging one pair after the other does: ``f <- (a + f) / 2`` in the order of the list.

    destinations: [B, r]; merged: float [B, r], 0 for removed tokens that are pruned.
    """
    row, column = ops.Unsqueeze(destinations, [1]), ops.Unsqueeze(destinations, [2])
    same = ops.Mul(ops.Cast(ops.Equal(column, row), to=FLOAT), ops.Unsqueeze(merged, [1]))
    from_here_on = ops.ReduceSum(ops.Trilu(same, upper=1), [-1], keepdims=0)
    halvings = ops.Min(ops.Cast(from_here_on, to=INT64), _SMALLEST)
    powers = ops.constant("powers_of_half", np.exp2(-np.arange(_SMALLEST + 1, dtype=np.float64)).astype(np.float32))
    return Mixing(weights=ops.Mul(ops.Gather(powers, halvings), merged))


def mean_merging(ops: Ops, destinations: ir.Value, merged: ir.Value, tokens: ir.Value) -> Mixing:
    """Return what merging all at once does: a destination becomes the mean of itself and all that goes into it.

    Shapes as in `pairwise_merging`; `tokens` is N.
    """
    ones = ops.Expand(1.0, ops.Concat(size(ops, destinations, 0), tokens, axis=0))
    counts = ops.ScatterElements(ones, destinations, merged, axis=1, reduction="add")
    return Mixing(weights=ops.Div(merged, pick(ops, counts, destinations)))


def _largest_of_each_channel(ops: Ops, rows: ir.Value, count: ir.Value) -> ir.Value:
    """Return `rows` [B, r, H] with all but the `count` largest values of each channel zero."""
    chosen = ops.several("TopK", 2, rows, count, axis=1, largest=1, sorted=1)[1]
    zeros = ops.ConstantOfShape(ops.Shape(rows))
    keep = ops.ScatterElements(zeros, chosen, ops.Expand(1.0, ops.Shape(chosen)), axis=1)
    return ops.Mul(rows, keep)
