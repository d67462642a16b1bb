"""The recurrence of Mamba-2 by the operator of ours.

Before, with P columns for each of H heads, and b and c shared by groups of heads::

    x, b, c = Split(xbc)                            xh = Reshape(x, [0, 0, H, P])
    dt = Softplus(Add(raw, dt_bias))                decay = Mul(Neg(Exp(A_log)), dt)
    value = Reshape(Mul(Unsqueeze(dt, [-1]), xh))   key, query = b, c repeated for each head of a group
    s, state = com.microsoft::LinearAttention(query, key, value, past, decay)
    y = Add(s, Reshape(Mul(Reshape(D, [1, 1, H, 1]), xh)))

After: ``y, state = edgeslim::StateSpaceScan(xbc, v, dt_bias, A_log, D, past)``, whose function body is the nodes
before; where raw is a part of Split(v), the columns of v are read in place.

Letters: H heads, P size of a head, N size of the state, G groups.
"""

from dataclasses import dataclass, field

import onnx_ir as ir

from edgeslim.exporters.functions import DOMAIN, SCAN, scan_function
from edgeslim.exporters.packed_nodes import sole_user
from edgeslim.exporters.passes.fuse_causal_conv import columns_of, constant, is_last_axis, put, use_function
from edgeslim.exporters.passes.fuse_gate import remove_unread
from edgeslim.exporters.passes.traced import Traced, UnlikeError, is_vector, require


class FuseStateSpace(ir.passes.InPlacePass):
    """Replace the LinearAttention nodes of Mamba-2 mixers with everything between convolution and gated norm."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if n.op_type == "LinearAttention" and n.domain == "com.microsoft"]
        found = [scan for scan in map(_match, nodes) if scan is not None]
        for scan in found:
            _replace(model, scan)
        return ir.passes.PassResult(model, bool(found))


@dataclass(kw_only=True)
class _Matched(Traced):
    """What a matched pattern is made of."""

    attention: ir.Node
    heads: int
    head_size: int
    state_size: int
    groups: int = 0
    sources: list[ir.Value] = field(default_factory=list)
    dt_start: int = 0
    y: ir.Value | None = None


def _match(node: ir.Node) -> _Matched | None:
    """Return the pattern around a LinearAttention node, None where there is another."""
    try:
        return _matched(node)
    except UnlikeError:
        return None


def _matched(node: ir.Node) -> _Matched:
    m = _gated(node)
    query, key, value, past, decay = node.inputs[:5]
    require(past is not None, "there is no state before")
    inner = [[0, 0, m.heads * m.head_size], [0, 0, -1]]
    value_heads = m.reshaped(value, *inner)
    column, x_heads = m.step(value_heads, "Mul", 2)
    if _op(column) != "Unsqueeze":
        column, x_heads = x_heads, column
    dt, axes = m.step(column, "Unsqueeze", 2)
    require(constant(axes) in ([-1], [3]), "dt gets another dimension than the last")
    x = m.reshaped(x_heads, [0, 0, m.heads, m.head_size])
    xbc = _split(m, x, key, query)
    raw, dt_bias = _biased(m, dt)
    a_log = _rate(m, decay, dt)
    skip = _skip(m, x_heads, inner)
    raw_source, m.dt_start = columns_of(raw)
    for parameter in (dt_bias, a_log, skip):
        require(is_vector(parameter, m.heads), "dt_bias, A_log and D are no constants with an entry a head")
    assert past is not None
    m.sources = [xbc, raw_source, dt_bias, a_log, skip, past]
    require(all(v.dtype in (None, ir.DataType.FLOAT) for v in m.sources), "a source is not float32")
    assert m.y is not None
    m.require_closed([m.y, m.attention.outputs[1]])
    return m


def _gated(node: ir.Node) -> _Matched:
    """Return the beginning of a match: a gated LinearAttention in the form that Mamba-2 needs."""
    a, state = node.attributes, node.inputs[3] if len(node.inputs) > 3 else None
    heads = a.get_int("q_num_heads", 0)
    require(set(a) <= {"q_num_heads", "kv_num_heads", "scale", "update_rule", "chunk_size"}, "it has other attributes")
    require(heads > 0 and a.get_int("kv_num_heads", 0) == heads, "keys have other heads than queries")
    require(
        a.get_string("update_rule", "") == "gated" and a.get_float("scale", 0.0) == 1.0, "it is scaled or not gated"
    )
    require(
        len(node.outputs) == 2 and len(node.inputs) >= 5 and all(v is None for v in node.inputs[5:]),
        "it has other inputs or outputs",
    )
    require(
        state is not None and state.shape is not None and state.shape.rank() == 4,
        "the state has no shape of 4 dimensions",
    )
    assert state is not None and state.shape is not None
    _, of_state, state_size, head_size = state.shape
    require(of_state == heads, "the state has other heads")
    if not isinstance(state_size, int) or not isinstance(head_size, int):
        raise UnlikeError("the state has a size that is not known")
    return _Matched(attention=node, heads=heads, state_size=state_size, head_size=head_size, nodes=[node])


def _split(m: _Matched, x: ir.Value, key: ir.Value | None, query: ir.Value | None) -> ir.Value:
    """Return the value that x, b and c are the columns of, in this order."""
    parts = [x, _shared(m, key), _shared(m, query)]
    node = x.producer()
    require(node is not None and all(part.producer() is node for part in parts), "x, b and c are of different nodes")
    require([part.index() for part in parts] == [0, 1, 2], "x, b and c stand in another order")
    source, sizes = m.step(x, "Split", 2)
    shared = m.groups * m.state_size
    require(
        is_last_axis(m.nodes[-1]) and constant(sizes) == [m.heads * m.head_size, shared, shared],
        "x, b and c are other columns",
    )
    return source


def _shared(m: _Matched, value: ir.Value | None) -> ir.Value:
    """Return the columns [B, T, G N] that `value` repeats for each head of a group, and note G."""
    if value is not None and _op(value) == "Split":
        groups, columns = m.heads, value
    else:
        repeated = m.reshaped(value, [0, 0, m.heads * m.state_size], [0, 0, -1])
        apart, repeats = m.step(repeated, "Expand", 2)
        times = constant(repeats)
        fits = times is not None and len(times) == 5 and times[3] > 0 and m.heads % times[3] == 0
        require(fits, "groups are not repeated for their heads")
        assert times is not None
        groups = m.heads // times[3]
        require(times == [1, 1, 1, times[3], 1], "more than heads is repeated")
        columns = m.reshaped(apart, [0, 0, groups, 1, m.state_size])
    require(m.groups in (0, groups), "b and c have different groups")
    m.groups = groups
    return columns


def _biased(m: _Matched, dt: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return (raw, bias) where dt is softplus(raw + bias)."""
    (total,) = m.step(dt, "Softplus", 1)
    raw, bias = m.step(total, "Add", 2)
    return (bias, raw) if raw.const_value is not None else (raw, bias)


def _rate(m: _Matched, decay: ir.Value | None, dt: ir.Value) -> ir.Value:
    """Return a where `decay` is -exp(a) dt."""
    minus, by = m.step(decay, "Mul", 2)
    if by is not dt:
        minus, by = by, minus
    require(by is dt, "the decay is no multiple of dt")
    (exponential,) = m.step(minus, "Neg", 1)
    (a_log,) = m.step(exponential, "Exp", 1)
    return a_log


def _skip(m: _Matched, x_heads: ir.Value, inner: list[list[int]]) -> ir.Value:
    """Return d where d x is added to the output of the attention, and note the sum."""
    scanned = m.attention.outputs[0]
    total = sole_user(scanned)
    require(total is not None and total.op_type == "Add" and total.domain == "", "no sum follows the scan")
    assert total is not None
    m.nodes.append(total)
    m.y = total.outputs[0]
    others = [v for v in total.inputs if v is not scanned]
    require(len(others) == 1, "the scan is added to itself")
    product = m.reshaped(others[0], *inner)
    column, by = m.step(product, "Mul", 2)
    if by is not x_heads:
        column, by = by, column
    require(by is x_heads, "what is added is no multiple of x")
    return m.reshaped(column, [1, 1, m.heads, 1], [m.heads, 1])


def _op(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _replace(model: ir.Model, m: _Matched) -> None:
    assert m.y is not None
    sizes = {"num_heads": m.heads, "head_size": m.head_size, "state_size": m.state_size, "groups": m.groups}
    attributes = [ir.AttrInt64(name, value) for name, value in {**sizes, "dt_start": m.dt_start}.items()]
    new = ir.Node(DOMAIN, SCAN, m.sources, attributes, num_outputs=2, name=m.attention.name)
    use_function(model, scan_function())
    put(model.graph, new, at=m.attention, instead_of=[m.y, m.attention.outputs[1]])
    remove_unread(model.graph, m.y)
