"""Attention over caches that hold different numbers of tokens, by operators that count slots.

After a reduction a layer's slot s holds the token of another position, so queries and keys are rotated before the node,
by the positions of the original tokens, and each layer tells the node how long its own cache is. A window counts
positions too: its layers carry those of their keys along as a further state and add a mask of their own.

Letters: B batch, N tokens, P tokens in a cache, S = P + N, G key heads, Q = G h query heads, W queries that look back,
d channels of a head, L longest context.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.errors import ExportError
from edgeslim.exporters.tokens.importance import key_importance, scan_importance
from edgeslim.exporters.tokens.methods import Seen
from edgeslim.exporters.tokens.ops import END, FLOAT, INT32, INT64, Ops, piece, size
from edgeslim.tokens.plan import LOOKING_BACK

_QKV, _KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _LENGTHS, _TOTAL, _COS, _SIN = range(9)  # inputs of the node
_BIAS = 10
_WINDOW = "local_window_size"
_HIDDEN = -1e9  # added to what a query must not see


@dataclass(frozen=True, kw_only=True)
class Attention:
    """An attention node of a layer as it was found: its sizes, and what it reads.

    parts: queries, keys and values before rotation, or all three in one; tables: cosines and sines [L, d / 2].
    """

    layer: int
    node: ir.Node
    queries: int
    keys: int
    width: int
    window: int | None
    parts: tuple[ir.Value | None, ...]
    tables: tuple[ir.Value, ir.Value]

    @classmethod
    def of(cls, layer: int, node: ir.Node) -> "Attention":
        """Return the facts of a GroupQueryAttention node.

        Raises: ExportError where it does not rotate its keys by tables.
        """
        past, cos, sin = (node.inputs[i] if i < len(node.inputs) else None for i in (_PAST_KEY, _COS, _SIN))
        width = past.shape[3] if past is not None and past.shape is not None else None
        if cos is None or sin is None or not isinstance(width, int) or _is_interleaved(node):
            raise ExportError(f"tokens cannot be reduced: attention of layer {layer} rotates its keys in no known way")
        window = node.attributes.get_int(_WINDOW, -1)
        return cls(
            layer=layer,
            node=node,
            queries=node.attributes.get_int("num_heads", 0),
            keys=node.attributes.get_int("kv_num_heads", 0),
            width=width,
            window=None if window < 0 else window,
            parts=tuple(node.inputs[: _VALUE + 1]),
            tables=(cos, sin),
        )

    def apart(self, ops: Ops) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return queries [B, N, Q d], keys and values [B, N, G d], not rotated."""
        query, key, value = self.parts
        assert query is not None
        if key is not None and value is not None:
            return query, key, value
        return self.split(ops, query)

    def split(self, ops: Ops, packed: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return queries, keys and values that lie in one value `packed` [B, N, (Q + 2 G) d]."""
        sizes = [self.queries * self.width, self.keys * self.width, self.keys * self.width]
        first, second, third = ops.several("Split", 3, packed, sizes, axis=-1)
        return first, second, third

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied with."""
        return float(self.node.attributes.get_float("scale", 0.0)) or float(self.width**-0.5)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What the node wants to know of a cache: S - 1 for each sequence [B], and S, both int32."""

    last: ir.Value
    total: ir.Value


def _is_interleaved(node: ir.Node) -> bool:
    return node.attributes.get_int("rotary_interleaved", 0) != 0


def lengths_of(ops: Ops, attention: Attention, positions: ir.Value) -> Lengths:
    """Return the lengths of a layer's own cache; `positions` [B, N] are those of the new tokens."""
    past = attention.node.inputs[_PAST_KEY]
    assert past is not None
    total = ops.Cast(ops.Add(size(ops, past, 2), size(ops, positions, 1)), to=INT32)
    last = ops.Expand(ops.Sub(total, ops.constant("1", np.ones(1, np.int32))), size(ops, positions, 0))
    return Lengths(last=last, total=ops.Squeeze(total, [0]))


def rotate_before(graph: ir.Graph, attention: Attention, positions: ir.Value, lengths: Lengths) -> None:
    """Let an attention node work on queries and keys rotated by `positions` [B, N], with lengths of its own."""
    node, ops = attention.node, Ops(graph, f"positions.{attention.layer}")
    query, key, value = attention.apart(ops)
    query, key = (
        ops.RotaryEmbedding(x, positions, *attention.tables, domain="com.microsoft", num_heads=heads, interleaved=0)
        for x, heads in ((query, attention.queries), (key, attention.keys))
    )
    given: dict[int, ir.Value | None] = {_COS: None, _SIN: None, _LENGTHS: lengths.last, _TOTAL: lengths.total}
    given |= {_QKV: query, _KEY: key, _VALUE: value}
    if attention.window is not None:
        node.resize_inputs(_BIAS + 1)
        given[_BIAS] = _window_bias(graph, ops, attention, positions)
        del node.attributes[_WINDOW]
    for index, operand in given.items():
        node.replace_input_with(index, operand)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    graph.insert_before(node, ops.nodes)
    for past in node.inputs[_PAST_KEY : _PAST_VALUE + 1]:
        if past is not None and past.shape is not None:
            past.shape = ir.Shape([*past.shape[:2], f"past_sequence_len_{attention.layer}", past.shape[3]])


@dataclass(frozen=True, kw_only=True)
class Attended:
    """What a step reads of attention: `y` [B, N, Q d], what it gives; `query` [B, N, Q d] and `key` [B, N, G d] before
    rotation, or all in `query` [B, N, (Q + 2 G) d]; `present_key` [B, G, N, d], rotated; cosines and sines [L, d / 2].

    None is what the method and its metric do not read.
    """

    y: ir.Value | None
    query: ir.Value | None
    key: ir.Value | None
    present_key: ir.Value | None
    cos: ir.Value | None
    sin: ir.Value | None


def look(ops: Ops, attention: Attention, given: Attended, branch: ir.Value, positions: ir.Value, metric: str) -> Seen:
    """Return what a step may see of attention to tokens at `positions` [B, N]: plain keys to compare, an importance."""

    def parts() -> tuple[ir.Value, ir.Value]:
        assert given.query is not None
        return (given.query, given.key) if given.key is not None else attention.split(ops, given.query)[:2]

    def importance() -> ir.Value:
        if metric == "attention":
            return _received(ops, attention, given, parts()[0], positions)
        if metric == "key-norm":
            return key_importance(ops, parts()[1], attention.keys, attention.width)
        assert given.y is not None
        return scan_importance(ops, given.y, metric)

    return Seen(like=branch, features=lambda: parts()[1], importance=importance)


def _window_bias(graph: ir.Graph, ops: Ops, attention: Attention, positions: ir.Value) -> ir.Value:
    """Return [B, 1, N, S]: 0 where a query sees a key by its window, else far below. Makes a state of the positions."""
    layer, kind = attention.layer, ir.TensorType(INT64)
    shape = ir.Shape(["batch", f"past_sequence_len_{layer}"])
    past = ir.Value(name=f"past_key_values.{layer}.position", shape=shape, type=kind)
    graph.inputs.append(past)
    present = ops.Concat(past, positions, axis=1)
    present.name, present.type = f"present.{layer}.position", kind
    present.shape = ir.Shape(["batch", f"cached_len_{layer}"])
    graph.outputs.append(present)
    hidden = ops.GreaterOrEqual(_distances(ops, positions, present), attention.window)
    return ops.Unsqueeze(ops.Mul(ops.Cast(hidden, to=FLOAT), _HIDDEN), [1])


def _distances(ops: Ops, queries: ir.Value, keys: ir.Value) -> ir.Value:
    """Return how far before each query [B, n] each key [B, m] lies: [B, n, m]."""
    return ops.Sub(ops.Unsqueeze(queries, [2]), ops.Unsqueeze(keys, [1]))


def _received(ops: Ops, attention: Attention, given: Attended, query: ir.Value, positions: ir.Value) -> ir.Value:
    """Return the attention [B, N] that tokens receive from the last queries; see `attention_importance`."""
    recent, share = piece(ops, positions, -LOOKING_BACK, END), attention.queries // attention.keys
    assert given.present_key is not None and given.cos is not None and given.sin is not None
    query = piece(ops, query, -LOOKING_BACK, END)
    turned = _rotated(
        ops, ops.Reshape(query, [0, 0, attention.keys, share, attention.width]), recent, (given.cos, given.sin)
    )
    keys = ops.Unsqueeze(given.present_key, [2])  # [B, G, 1, N, d], rotated
    products = ops.MatMul(ops.Transpose(turned, perm=[0, 2, 3, 1, 4]), ops.Transpose(keys, perm=[0, 1, 2, 4, 3]))
    distance = _distances(ops, recent, positions)
    unseen = ops.Less(distance, 0)
    if attention.window is not None:
        unseen = ops.Or(unseen, ops.GreaterOrEqual(distance, attention.window))
    mask = ops.Unsqueeze(ops.Mul(ops.Cast(unseen, to=FLOAT), _HIDDEN), [1, 2])
    weights = ops.Softmax(ops.Add(ops.Mul(products, attention.scale), mask), axis=-1)  # [B, G, h, W, N]
    received = ops.ReduceSum(ops.ReduceMean(weights, [1, 2], keepdims=0), [1], keepdims=0)
    return ops.Div(received, _seen_by(ops, positions, recent))


def _seen_by(ops: Ops, positions: ir.Value, recent: ir.Value) -> ir.Value:
    """Return how many of the last queries come at or after each token: float [N]."""
    tokens = size(ops, positions, 1)
    left = ops.Range(ops.Squeeze(tokens, [0]), 0, -1)
    return ops.Cast(ops.Min(left, size(ops, recent, 1)), to=FLOAT)


def _rotated(ops: Ops, x: ir.Value, positions: ir.Value, tables: tuple[ir.Value, ir.Value]) -> ir.Value:
    """Rotate `x` [B, W, G, h, d] by `positions` [B, W]."""
    cos, sin = (ops.Unsqueeze(ops.Gather(table, positions), [2, 3]) for table in tables)
    first, second = ops.several("Split", 2, x, axis=-1, num_outputs=2)
    turned_first = ops.Sub(ops.Mul(first, cos), ops.Mul(second, sin))
    turned_second = ops.Add(ops.Mul(second, cos), ops.Mul(first, sin))
    return ops.Concat(turned_first, turned_second, axis=-1)
