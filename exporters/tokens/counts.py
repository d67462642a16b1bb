"""How many tokens each step removes: integer arithmetic on the prompt's length, once, at the beginning of a graph.

Letters: N tokens that enter a step, r tokens that it removes.
"""

from collections.abc import Sequence

import onnx_ir as ir

from edgeslim.exporters.tokens.ops import INT64, Ops, piece
from edgeslim.tokens.plan import ReductionPlan, millionths

_MILLION = 1_000_000


def removals(ops: Ops, tokens: ir.Value, past: ir.Value, ratios: ir.Value, plan: ReductionPlan) -> ir.Value:
    """Return how many tokens each step removes: int64 [steps].

    Only what begins a sequence is a prompt; fewer tokens than the plan reduces, as in decoding, are not even asked
    whether they do. `tokens` is N, [1]; `past` a state from before, empty or zero at the beginning; `ratios` [steps]
    the shares that are kept, in millionths.
    """
    steps = range(len(plan.layers))

    def counted(inner: Ops) -> Sequence[ir.Value]:
        left, found = tokens, []
        begins = inner.Cast(inner.Equal(inner.ReduceSum(inner.Abs(past), keepdims=0), 0.0), to=INT64)
        for step in steps:
            removed = inner.Mul(_removed(inner, left, piece(inner, ratios, step, step + 1, axis=0), plan), begins)
            found.append(removed)
            left = inner.Sub(left, removed)
        return [inner.Concat(*found, axis=0)]

    def none(inner: Ops) -> Sequence[ir.Value]:
        return [inner.Expand(0, [len(plan.layers)])]

    enough = ops.Squeeze(ops.Greater(tokens, [max(1, plan.min_tokens - 1)]), [0])
    return ops.choose(enough, counted, none, [INT64])[0]


def _removed(ops: Ops, tokens: ir.Value, ratio: ir.Value, plan: ReductionPlan) -> ir.Value:
    """Return what `ReductionPlan.removed` says of N = `tokens`, int64 [1]; `ratio` [1] is in millionths."""
    scaled = ops.Mul(tokens, ratio)
    keep = ops.Div(ops.Add(scaled, [_MILLION - 1]), [_MILLION])
    unprotected = ops.Max(ops.Sub(tokens, [plan.protected]), [0]) if plan.protected else tokens
    return ops.Min(ops.Sub(tokens, keep), ops.Div(unprotected, [2]))


def pruned(ops: Ops, removed: ir.Value, plan: ReductionPlan) -> ir.Value:
    """Return how many of the `removed` tokens a hybrid rule prunes: floor(q r)."""
    return ops.Div(ops.Mul(removed, [millionths(plan.q)]), [_MILLION])
