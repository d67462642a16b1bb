"""What becomes of a branch in one step: `edgeslim.tokens.step` as nodes.

Letters: B batch, N tokens before, K after, r = N - K removed, H channels.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.tokens.matching import pick, take
from edgeslim.exporters.tokens.ops import FLOAT, INT64, Ops, size

_SMALLEST = 150  # 2^-150 is zero in float32


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Row n times `own` [B, N], plus `weights` [B, r] times the removed rows that go to n.

    `largest` [1], where given, lets only that many of the removed rows count in each channel.
    """

    own: ir.Value
    weights: ir.Value
    largest: ir.Value | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """Positions of one step: kept [B, K], ascending; removed and destinations [B, r]. A mixing None only drops."""

    kept: ir.Value
    removed: ir.Value
    destinations: ir.Value
    hidden: Mixing | None = None
    residual: Mixing | None = None


def mix(ops: Ops, x: ir.Value, step: Step, mixing: Mixing | None) -> ir.Value:
    """Return the branch `x` [B, N, H] after the step, [B, K, H], in the original order."""
    if mixing is None:
        return take(ops, x, step.kept)
    gone = take(ops, x, step.removed)
    if mixing.largest is not None:
        gone = _largest_of_each_channel(ops, gone, mixing.largest)
    added = ops.Mul(gone, ops.Unsqueeze(mixing.weights, [-1]))
    index = ops.Expand(ops.Unsqueeze(step.destinations, [-1]), ops.Shape(added))
    out = ops.ScatterElements(ops.Mul(x, ops.Unsqueeze(mixing.own, [-1])), index, added, axis=1, reduction="add")
    return take(ops, out, step.kept)


def pairwise_merging(ops: Ops, destinations: ir.Value, merged: ir.Value, tokens: ir.Value) -> Mixing:
    """Return what merging one pair after the other does: ``f <- (a + f) / 2`` in the order of the list.

    destinations: [B, r]; merged: float [B, r], 0 for removed tokens that are pruned; `tokens` is N.
    """
    row, column = ops.Unsqueeze(destinations, [1]), ops.Unsqueeze(destinations, [2])
    same = ops.Mul(ops.Cast(ops.Equal(column, row), to=FLOAT), ops.Unsqueeze(merged, [1]))
    from_here_on = ops.ReduceSum(ops.Trilu(same, upper=1), [-1], keepdims=0)
    halvings = ops.Min(ops.Cast(from_here_on, to=INT64), _SMALLEST)
    powers = ops.constant("powers_of_half", np.exp2(-np.arange(_SMALLEST + 1, dtype=np.float64)).astype(np.float32))
    weights = ops.Mul(ops.Gather(powers, halvings), merged)
    factors = ops.Sub(1.0, ops.Mul(merged, 0.5))
    own = ops.ScatterElements(_ones(ops, destinations, tokens), destinations, factors, axis=1, reduction="mul")
    return Mixing(own=own, weights=weights)


def mean_merging(ops: Ops, destinations: ir.Value, merged: ir.Value, tokens: ir.Value) -> Mixing:
    """Return what merging all at once does: a destination becomes the mean of itself and all that goes into it."""
    counts = ops.ScatterElements(_ones(ops, destinations, tokens), destinations, merged, axis=1, reduction="add")
    own = ops.Reciprocal(counts)
    return Mixing(own=own, weights=ops.Mul(pick(ops, own, destinations), merged))


def _ones(ops: Ops, like: ir.Value, tokens: ir.Value) -> ir.Value:
    return ops.Expand(1.0, ops.Concat(size(ops, like, 0), tokens, axis=0))


def _largest_of_each_channel(ops: Ops, rows: ir.Value, count: ir.Value) -> ir.Value:
    """Return `rows` [B, r, H] with all but the `count` largest values of each channel zero."""
    chosen = ops.several("TopK", 2, rows, count, axis=1, largest=1, sorted=1)[1]
    zeros = ops.ConstantOfShape(ops.Shape(rows))
    keep = ops.ScatterElements(zeros, chosen, ops.Expand(1.0, ops.Shape(chosen)), axis=1)
    return ops.Mul(rows, keep)
