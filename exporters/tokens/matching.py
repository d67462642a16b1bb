"""Which token goes with which: `edgeslim.tokens.matching` as nodes.

Letters: B batch, N tokens, C channels, r removed. TopK breaks ties by the lower index, as stable sorting does.
"""

import onnx_ir as ir

from edgeslim.exporters.tokens.ops import END, Ops, piece, size

_LEAST_NORM = 1e-12


def smallest_first(ops: Ops, scores: ir.Value, count: ir.Value) -> ir.Value:
    """Return the indices [B, count] of the smallest of `scores` [B, N], ascending by score, ties by index."""
    return ops.several("TopK", 2, scores, count, axis=-1, largest=0, sorted=1)[1]


def largest_first(ops: Ops, scores: ir.Value, count: ir.Value) -> ir.Value:
    """Return the indices [B, count] of the largest of `scores` [B, N], descending by score, ties by index."""
    return ops.several("TopK", 2, scores, count, axis=-1, largest=1, sorted=1)[1]


def ascending(ops: Ops, positions: ir.Value, count: ir.Value) -> ir.Value:
    """Return the `count` lowest of `positions` [B, n], ascending."""
    return ops.several("TopK", 2, positions, count, axis=-1, largest=0, sorted=1)[0]


def up_to(ops: Ops, like: ir.Value, tokens: ir.Value) -> ir.Value:
    """Return the positions 0 … N-1 = `tokens` - 1 for each row of `like` [B, ...]: int64 [B, N]."""
    row = ops.Range(0, ops.Squeeze(tokens), 1)
    return ops.Expand(row, ops.Concat(size(ops, like, 0), tokens, axis=0))


def others(ops: Ops, removed: ir.Value, tokens: ir.Value) -> ir.Value:
    """Return the positions [B, N - r] that are not among `removed` [B, r], ascending; `tokens` is N."""
    beyond = ops.Expand(tokens, ops.Shape(removed))
    keys = ops.ScatterElements(up_to(ops, removed, tokens), removed, beyond, axis=1, reduction="add")
    return ascending(ops, keys, ops.Sub(tokens, size(ops, removed, 1)))


def halves(ops: Ops, importance: ir.Value, first: int) -> tuple[ir.Value, ir.Value]:
    """Split the unprotected positions, from `first` on, into the less important half A and the rest B, both ascending.

    importance: [B, u], of the unprotected alone.
    """
    count = size(ops, importance, 1)
    cut = ops.Div(count, [2])
    a = ascending(ops, smallest_first(ops, importance, cut), cut)
    b = others(ops, a, count)
    return (ops.Add(a, [first]), ops.Add(b, [first])) if first else (a, b)


def alternating(ops: Ops, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Split `positions` [B, u] into every second one, A, and the rest, B, which has the first."""
    return piece(ops, positions, 1, END, step=2), piece(ops, positions, 0, END, step=2)


def best_matches(ops: Ops, features: ir.Value, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Find for each position of `a` [B, a] the most similar of `b` [B, b], by the cosine of `features` [B, N, C].

    Returns that largest cosine [B, a] and the position [B, a] it belongs to; of equal ones the lowest position.
    """
    of_a, of_b = take(ops, features, a), take(ops, features, b)
    products = ops.MatMul(of_a, ops.Transpose(of_b, perm=[0, 2, 1]))
    by_b = ops.Div(products, ops.Transpose(_length(ops, of_b), perm=[0, 2, 1]))
    best, found = ops.several("TopK", 2, by_b, [1], axis=-1, largest=1, sorted=1)
    similarity = ops.Squeeze(ops.Div(best, _length(ops, of_a)), [-1])
    return similarity, pick(ops, b, ops.Squeeze(found, [-1]))


def pick(ops: Ops, values: ir.Value, indices: ir.Value) -> ir.Value:
    """Return the entries [B, k] of `values` [B, n] at `indices` [B, k]."""
    return ops.GatherElements(values, indices, axis=1)


def take(ops: Ops, x: ir.Value, positions: ir.Value) -> ir.Value:
    """Return the rows [B, k, C] of `x` [B, N, C] at `positions` [B, k]."""
    return ops.GatherND(x, ops.Unsqueeze(positions, [-1]), batch_dims=1)


def mask_of(ops: Ops, like: ir.Value, indices: ir.Value) -> ir.Value:
    """Return float [B, n], 1 at `indices` [B, k] and else 0; `like` is any [B, n]."""
    zeros = ops.ConstantOfShape(ops.Shape(like))
    ones = ops.Expand(1.0, ops.Shape(indices))
    return ops.ScatterElements(zeros, indices, ones, axis=1)


def _length(ops: Ops, rows: ir.Value) -> ir.Value:
    return ops.Max(ops.ReduceL2(rows, [-1], keepdims=1), _LEAST_NORM)
