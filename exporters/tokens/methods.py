"""Every method as nodes, by name: `edgeslim.tokens.methods`, `utrc` and `baselines`.

Letters: B batch, N tokens, C channels, r removed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgeslim.exporters.tokens.counts import pruned
from edgeslim.exporters.tokens.matching import (
    alternating,
    best_matches,
    halves,
    largest_first,
    mask_of,
    others,
    pick,
    smallest_first,
    up_to,
)
from edgeslim.exporters.tokens.mixing import Mixing, Step, mean_merging, pairwise_merging, slots_of
from edgeslim.exporters.tokens.ops import END, Ops, piece, size
from edgeslim.tokens.hashing import PRIME, round_keys
from edgeslim.tokens.plan import ReductionPlan


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a step may look at. `like` is any [B, N, ...]; the others make nodes only when a method asks for them.

    features: [B, N, C], compared by cosine; importance: [B, N].
    """

    like: ir.Value
    features: Callable[[], ir.Value]
    importance: Callable[[], ir.Value]


def choose(ops: Ops, plan: ReductionPlan, step: int, seen: Seen, removed: ir.Value) -> Step:
    """Return the nodes of step number `step` of `plan`, which removes r = `removed` [1], at least 1, tokens."""
    return _METHODS[plan.method](ops, plan, plan.layers[step], seen, removed)


def _utrc(ops: Ops, plan: ReductionPlan, layer: int, seen: Seen, removed: ir.Value) -> Step:
    importance, tokens = seen.importance(), size(ops, seen.like, 1)
    a, b = halves(ops, _unprotected(ops, importance, plan), int(plan.protect_first))
    similarity, matches = best_matches(ops, seen.features(), a, b)
    chosen = largest_first(ops, similarity, removed)
    gone, destinations = pick(ops, a, chosen), pick(ops, matches, chosen)
    least = smallest_first(ops, pick(ops, importance, gone), pruned(ops, removed, plan))
    kept_out = mask_of(ops, gone, least)

    def mixing(rule: str) -> Mixing | None:
        if rule == "prune":
            return None
        merged = ops.Sub(1.0, kept_out) if rule == "hybrid" else ops.Expand(1.0, ops.Shape(gone))
        if plan.merge == "pairwise":
            return pairwise_merging(ops, destinations, merged)
        return mean_merging(ops, destinations, merged, tokens)

    return _mixed(ops, gone, destinations, tokens, mixing(plan.hidden), mixing(plan.residual))


def _evit(ops: Ops, plan: ReductionPlan, layer: int, seen: Seen, removed: ir.Value) -> Step:
    return _drop_smallest(ops, seen.importance(), plan, removed, size(ops, seen.like, 1))


def _random(ops: Ops, plan: ReductionPlan, layer: int, seen: Seen, removed: ir.Value) -> Step:
    tokens = size(ops, seen.like, 1)
    score = up_to(ops, seen.like, tokens)
    for key in round_keys(plan.seed, layer):
        score = ops.Mod(ops.Add(score, key), PRIME)
        square = ops.Mod(ops.Mul(score, score), PRIME)
        fourth = ops.Mod(ops.Mul(square, square), PRIME)
        score = ops.Mod(ops.Mul(fourth, score), PRIME)
    return _drop_smallest(ops, score, plan, removed, tokens)


def _pumer(ops: Ops, plan: ReductionPlan, layer: int, seen: Seen, removed: ir.Value) -> Step:
    tokens = size(ops, seen.like, 1)
    gone, destinations = _most_similar(
        ops, seen.features(), _unprotected(ops, up_to(ops, seen.like, tokens), plan), removed
    )
    merge = mean_merging(ops, destinations, ops.Expand(1.0, ops.Shape(gone)), tokens)
    return _mixed(ops, gone, destinations, tokens, merge, merge)


def _ltmp(ops: Ops, plan: ReductionPlan, layer: int, seen: Seen, removed: ir.Value) -> Step:
    tokens, drops = size(ops, seen.like, 1), pruned(ops, removed, plan)
    dropped = _smallest_unprotected(ops, seen.importance(), plan, drops)
    inside = _unprotected(ops, others(ops, dropped, tokens), plan)
    merged, into = _most_similar(ops, seen.features(), inside, ops.Sub(removed, drops))
    gone = ops.Concat(merged, dropped, axis=1)
    destinations = ops.Concat(into, dropped, axis=1)
    ones, zeros = ops.Expand(1.0, ops.Shape(merged)), ops.Expand(0.0, ops.Shape(dropped))
    merge = mean_merging(ops, destinations, ops.Concat(ones, zeros, axis=1), tokens)
    return _mixed(ops, gone, destinations, tokens, merge, merge)


def _official_code(ops: Ops, plan: ReductionPlan, layer: int, seen: Seen, removed: ir.Value) -> Step:
    tokens = size(ops, seen.like, 1)
    gone = ops.Mul(up_to(ops, seen.like, removed), 2)
    destinations = ops.Expand(1, ops.Shape(gone))
    merge = mean_merging(ops, destinations, ops.Expand(1.0, ops.Shape(gone)), tokens)
    hidden = Mixing(weights=merge.weights, largest=ops.Div(removed, [2]))
    return _mixed(ops, gone, destinations, tokens, hidden, merge)


def _mixed(
    ops: Ops,
    removed: ir.Value,
    destinations: ir.Value,
    tokens: ir.Value,
    hidden: Mixing | None,
    residual: Mixing | None,
) -> Step:
    return Step(
        kept=others(ops, removed, tokens),
        removed=removed,
        destinations=destinations,
        slots=slots_of(ops, destinations, removed, tokens),
        hidden=hidden,
        residual=residual,
    )


def _drop_smallest(ops: Ops, scores: ir.Value, plan: ReductionPlan, removed: ir.Value, tokens: ir.Value) -> Step:
    gone = _smallest_unprotected(ops, scores, plan, removed)
    return Step(kept=others(ops, gone, tokens), removed=gone)


def _smallest_unprotected(ops: Ops, scores: ir.Value, plan: ReductionPlan, count: ir.Value) -> ir.Value:
    chosen = smallest_first(ops, _unprotected(ops, scores, plan), count)
    return ops.Add(chosen, [1]) if plan.protect_first else chosen


def _unprotected(ops: Ops, values: ir.Value, plan: ReductionPlan) -> ir.Value:
    """Return the columns of `values` [B, n] that are not protected, at the beginning and at the end."""
    return piece(ops, values, int(plan.protect_first), -plan.protect_last if plan.protect_last else END)


def _most_similar(ops: Ops, features: ir.Value, positions: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return sources and destinations [B, count] among `positions` [B, u], in descending similarity."""
    a, b = alternating(ops, positions)
    similarity, matches = best_matches(ops, features, a, b)
    chosen = largest_first(ops, similarity, count)
    return pick(ops, a, chosen), pick(ops, matches, chosen)


_METHODS: dict[str, Callable[[Ops, ReductionPlan, int, Seen, ir.Value], Step]] = {
    "utrc": _utrc,
    "evit": _evit,
    "pumer": _pumer,
    "ltmp": _ltmp,
    "random": _random,
    "official-code": _official_code,
}
