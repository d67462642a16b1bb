"""How many tokens each step removes: integer arithmetic on the prompt's length, once, at the beginning of a graph.

Letters: N tokens that enter a step, r tokens that it removes.
"""

from collections.abc import Sequence

import onnx_ir as ir

from edgeslim.exporters.tokens.ops import BOOL, INT64, Ops
from edgeslim.tokens.plan import ReductionPlan, millionths

_MILLION = 1_000_000


def removals(
    ops: Ops, tokens: ir.Value, is_beginning: "Beginning", plan: ReductionPlan
) -> list[tuple[ir.Value, ir.Value]]:
    """Return for each step whether it removes anything (bool scalar) and how many (int64 [1]).

    Only what begins a sequence is a prompt; fewer tokens than the plan reduces, as in decoding, are not even asked
    whether they do. `tokens` is N, [1].
    """
    steps = range(len(plan.layers))

    def counted(inner: Ops) -> Sequence[ir.Value]:
        left, found = tokens, []
        begins = inner.Cast(is_beginning(inner), to=INT64)
        for step in steps:
            removed = inner.Mul(_removed(inner, left, plan, step), begins)
            found.append(removed)
            left = inner.Sub(left, removed)
        return [*(inner.Squeeze(inner.Greater(removed, [0]), [0]) for removed in found), *found]

    def none(inner: Ops) -> Sequence[ir.Value]:
        return [*(inner.Less(1, 0) for _ in steps), *(inner.Identity([0]) for _ in steps)]

    enough = ops.Squeeze(ops.Greater(tokens, [max(1, plan.min_tokens - 1)]), [0])
    outputs = ops.choose(enough, counted, none, [BOOL] * len(steps) + [INT64] * len(steps))
    for value in outputs[: len(steps)]:
        value.shape = ir.Shape([])
    return list(zip(outputs[: len(steps)], outputs[len(steps) :], strict=True))


class Beginning:
    """Asks whether these tokens are the first of their sequences: bool [1]."""

    def __init__(self, past: ir.Value) -> None:
        """`past` is a state from before: keys [B, G, P, D], or the window of a convolution, zero at the beginning."""
        self.past = past

    def __call__(self, ops: Ops) -> ir.Value:
        if (self.past.name or "").endswith(".key"):
            return ops.Equal(ops.Shape(self.past, start=2, end=3), [0])
        largest = ops.ReduceMax(ops.Abs(self.past), keepdims=0)
        return ops.Reshape(ops.Equal(largest, 0.0), [1])


def _removed(ops: Ops, tokens: ir.Value, plan: ReductionPlan, step: int) -> ir.Value:
    """Return what `ReductionPlan.removed` says of N = `tokens`, int64 [1]."""
    scaled = ops.Mul(tokens, [millionths(plan.ratios[step])])
    keep = ops.Div(ops.Add(scaled, [_MILLION - 1]), [_MILLION])
    unprotected = ops.Max(ops.Sub(tokens, [plan.protected]), [0]) if plan.protected else tokens
    return ops.Min(ops.Sub(tokens, keep), ops.Div(unprotected, [2]))


def pruned(ops: Ops, removed: ir.Value, plan: ReductionPlan) -> ir.Value:
    """Return how many of the `removed` tokens a hybrid rule prunes: floor(q r)."""
    return ops.Div(ops.Mul(removed, [millionths(plan.q)]), [_MILLION])
