"""How important tokens are: `edgeslim.tokens.importance` as nodes.

Letters: B batch, N tokens, D channels, G key heads, Q query heads, W queries that look back, d channels of a head.
"""

import onnx_ir as ir

from edgeslim.exporters.tokens.ops import Ops


def scan_importance(ops: Ops, y: ir.Value, metric: str) -> ir.Value:
    """Return the importance [B, N] of tokens by what the mixer makes of them, `y` [B, N, D]."""
    if metric == "l2":
        return ops.Sqrt(ops.ReduceMean(ops.Mul(y, y), [-1], keepdims=0))
    shaped = {"clip": ops.Relu, "l1": ops.Abs, "none": lambda value: value}[metric](y)
    return ops.ReduceMean(shaped, [-1], keepdims=0)


def key_importance(ops: Ops, keys: ir.Value, heads: int, width: int) -> ir.Value:
    """Return minus the mean length over heads of `keys` [B, N, G d]: [B, N]."""
    apart = ops.Reshape(keys, [0, 0, heads, width])
    return ops.Neg(ops.ReduceMean(ops.ReduceL2(apart, [-1], keepdims=0), [-1], keepdims=0))
