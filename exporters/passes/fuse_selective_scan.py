"""The recurrence of Mamba-1 by the operator of ours.

Before, with a head for each of I channels and b, c repeated for each of them::

    dt = Softplus(Add(raw, dt_bias))                decay = Reshape(Mul(Unsqueeze(dt, [-1]), Neg(Exp(A_log))))
    key, query = Reshape(Expand(Unsqueeze(b, [2]))), the same of c
    s, state = com.microsoft::LinearAttention(query, key, Mul(dt, x), past, decay)
    y = Add(s, Mul(x, D))

After: ``y, state = edgeslim::SelectiveScan(x, raw, dt_bias, A_log, D, b, c, past)``, whose function body is a loop over
tokens. Parts of a Split are read in place; a bias that a product adds already is zero; where nothing but
``Mul(y, Mul(z, Sigmoid(z)))`` reads y, the operator is given the gate z too.

Letters: I channels, N size of the state.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.functions import DOMAIN, GATED, SELECTIVE_SCAN, SELECTIVE_SCAN_INPUTS, selective_scan_function
from edgeslim.exporters.packed_nodes import sole_user
from edgeslim.exporters.passes.fuse_causal_conv import columns_of, constant, put, use_function
from edgeslim.exporters.passes.fuse_gate import gated_parts, remove_unread
from edgeslim.exporters.passes.traced import Traced, UnlikeError, is_vector, require

MOST_STATE = 256
"""The largest state that the kernel takes."""


class FuseSelectiveScan(ir.passes.InPlacePass):
    """Replace the LinearAttention nodes of Mamba-1 mixers with everything between convolution and gate.

    `unlike` says of each such node that stays what departs from the pattern.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unlike: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if n.op_type == "LinearAttention" and n.domain == "com.microsoft"]
        found = False
        for node in nodes:
            try:
                _replace(model, _matched(node))
                found = True
            except UnlikeError as reason:
                self.unlike[node.name or ""] = str(reason)
        return ir.passes.PassResult(model, found)


@dataclass(kw_only=True)
class _Matched(Traced):
    """What a matched pattern is made of: the operands by name, None for a bias that is not there."""

    attention: ir.Node
    channels: int
    size: int
    y: ir.Value
    operands: dict[str, ir.Value | None] = field(default_factory=dict)


def _matched(node: ir.Node) -> _Matched:
    """Return the pattern around a LinearAttention node.

    Raises: UnlikeError where there is another.
    """
    m = _gated_attention(node)
    query, key, value, past, decay = node.inputs[:5]
    a_log, dt = _rate(m, decay)
    raw, bias = _step(m, dt)
    x = m.times(value, dt)
    skip = _skip(m, x)
    m.operands = {"x": x, "dt": raw, "dt_bias": bias, "A_log": a_log, "D": skip}
    m.operands |= {"b": _shared(m, key), "c": _shared(m, query), "past_state": past}
    require(is_vector(a_log, m.channels, m.size), "A_log is no constant [channels, state]")
    require(is_vector(skip, m.channels), "D is no constant [channels]")
    floats = all(v is None or v.dtype in (None, ir.DataType.FLOAT) for v in m.operands.values())
    require(floats, "an operand is not float32")
    m.require_closed([m.y, node.outputs[1]])
    return m


def _gated_attention(node: ir.Node) -> _Matched:
    """Return the beginning of a match: a gated LinearAttention with a head a channel."""
    a, state = node.attributes, node.inputs[3] if len(node.inputs) > 3 else None
    heads = a.get_int("q_num_heads", 0)
    known = set(a) <= {"q_num_heads", "kv_num_heads", "scale", "update_rule", "chunk_size"}
    require(known and heads > 0 and a.get_int("kv_num_heads", 0) == heads, "heads of queries and keys differ")
    require(a.get_string("update_rule", "") == "gated", "another update rule")
    require(a.get_float("scale", 0.0) == 1.0, "another scale")
    inputs = len(node.outputs) == 2 and len(node.inputs) >= 5 and all(v is None for v in node.inputs[5:])
    require(inputs, "more or fewer inputs or outputs")
    require(state is not None and state.shape is not None and state.shape.rank() == 4, "a state without shape")
    assert state is not None and state.shape is not None
    _, of_state, size, width = state.shape
    require(of_state == heads and width == 1, "more than a channel a head")
    if not isinstance(size, int) or not 1 <= size <= MOST_STATE:
        raise UnlikeError(f"a state of {size}, beyond {MOST_STATE}")
    m = _Matched(attention=node, channels=heads, size=size, y=node.outputs[0])
    m.nodes.append(node)
    return m


def _rate(m: _Matched, decay: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """Return (a, dt) where `decay` is -exp(a) dt."""
    products = m.reshaped(decay, [0, 0, m.channels * m.size], [0, 0, -1])
    column, minus = m.step(products, "Mul", 2)
    if column.producer() is not None and column.producer().op_type == "Neg":  # type: ignore[union-attr]
        column, minus = minus, column
    dt, axes = m.step(column, "Unsqueeze", 2)
    require(constant(axes) in ([-1], [3]), "steps are turned otherwise")
    (exponential,) = m.step(minus, "Neg", 1)
    (a_log,) = m.step(exponential, "Exp", 1)
    return a_log, dt


def _step(m: _Matched, dt: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Return (raw, bias) where dt is softplus(raw + bias), None where the product adds its bias itself."""
    (total,) = m.step(dt, "Softplus", 1)
    node = total.producer()
    for raw, bias in (node.inputs, reversed(node.inputs)) if node is not None and node.op_type == "Add" else ():
        if raw is not None and bias is not None and is_vector(bias, m.channels) and sole_user(total) is not None:
            m.step(total, "Add", 2)
            return raw, bias
    return total, None


def _skip(m: _Matched, x: ir.Value) -> ir.Value:
    """Return d where d x is added to the output of the attention, and note the sum."""
    scanned = m.attention.outputs[0]
    total = sole_user(scanned)
    require(total is not None and total.op_type == "Add" and total.domain == "", "nothing is added to the scan")
    assert total is not None
    m.nodes.append(total)
    m.y = total.outputs[0]
    others = [v for v in total.inputs if v is not scanned]
    require(len(others) == 1, "the scan is added to itself")
    return m.times(others[0], x)


def _shared(m: _Matched, value: ir.Value | None) -> ir.Value:
    """Return the columns [B, T, N] that `value` repeats for each channel."""
    repeated = m.reshaped(value, [0, 0, m.channels * m.size], [0, 0, -1])
    row, repeats = m.step(repeated, "Expand", 2)
    require(constant(repeats) == [1, 1, m.channels, 1], "b or c is repeated otherwise")
    columns, axes = m.step(row, "Unsqueeze", 2)
    require(constant(axes) in ([2], [-2]), "b or c is turned otherwise")
    return columns


def _replace(model: ir.Model, m: _Matched) -> None:
    y = m.y
    user = sole_user(y)
    if user is not None and (parts := gated_parts(user.outputs[0])) is not None and parts[0] is y:
        m.operands["gate"] = parts[1]
        m.y = user.outputs[0]
    gated = m.operands.get("gate") is not None
    if m.operands["dt_bias"] is None:
        m.operands["dt_bias"] = _zeros(model.graph, m.channels)
    inputs: list[ir.Value | None] = []
    attributes: dict[str, int] = {}
    for name in SELECTIVE_SCAN_INPUTS[: None if gated else -1]:
        source = m.operands[name]
        assert source is not None
        if name in ("x", "dt", "b", "c", "gate"):
            source, attributes[f"{name}_start"] = columns_of(source)
        inputs.append(source)
    attributes.setdefault("gate_start", 0)
    new = ir.Node(
        DOMAIN,
        SELECTIVE_SCAN,
        inputs,
        [ir.AttrInt64(name, value) for name, value in attributes.items()],
        overload=GATED if gated else "",
        num_outputs=2,
        name=m.attention.name,
    )
    use_function(model, selective_scan_function(gated=gated))
    last = user if gated else m.attention
    assert last is not None
    put(model.graph, new, at=last, instead_of=[m.y, m.attention.outputs[1]])
    remove_unread(model.graph, m.y)


def _zeros(graph: ir.Graph, count: int) -> ir.Value:
    """Return the constant of `count` zeros, one for all."""
    name = f"zeros.{count}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.zeros(count, np.float32), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape([count]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]
