"""A gate moves into the product behind it.

Before: ``h = Mul(u, Mul(g, Sigmoid(g)))``; ``y = PackedLinear(h)`` (with or without a norm between, see FuseNorm).
After: ``y = PackedLinear(u, gate=g)``, and where g or u is a part of Split(v), columns of v are read in place.
"""

import onnx_ir as ir

from edgeslim.exporters.packed_nodes import linear_nodes, operand, set_operand, sole_user


class FuseGate(ir.passes.InPlacePass):
    """Fuse ``x * silu(gate)`` into PackedLinear nodes that alone read it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in linear_nodes(model.graph):
            x = operand(node, "x")
            parts = None if operand(node, "gate") is not None or x is None else gated_parts(x)
            if parts is not None and sole_user(x) is node:
                _fuse(model.graph, node, *parts)
                found = True
        return ir.passes.PassResult(model, found)


def gated_parts(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return (u, g) when `value` is u * silu(g), else None."""
    product = value.producer()
    if product is None or product.op_type != "Mul":
        return None
    for u, activated in (product.inputs, reversed(product.inputs)):
        gate = _silu_argument(activated)
        if u is not None and gate is not None and sole_user(activated) is product:
            return u, gate
    return None


def _silu_argument(value: ir.Value | None) -> ir.Value | None:
    """Return g when `value` is g * Sigmoid(g), else None."""
    product = value.producer() if value is not None else None
    if product is None or product.op_type != "Mul":
        return None
    for gate, sigmoid in (product.inputs, reversed(product.inputs)):
        node = sigmoid.producer() if sigmoid is not None else None
        if node is not None and node.op_type == "Sigmoid" and node.inputs[0] is gate and sole_user(sigmoid) is product:
            return gate
    return None


def _fuse(graph: ir.Graph, node: ir.Node, u: ir.Value, gate: ir.Value) -> None:
    old = operand(node, "x")
    assert old is not None
    for name, value in (("x", u), ("gate", gate)):
        source, start = _whole(value)
        set_operand(node, name, source)
        if start:
            node.attributes[f"{name}_start"] = ir.AttrInt64(f"{name}_start", start)
    remove_unread(graph, old)


def _whole(value: ir.Value) -> tuple[ir.Value, int]:
    """Return the value whose columns, from the second part of the result on, are `value`."""
    node = value.producer()
    if node is None or node.op_type != "Split" or len(node.inputs) < 2 or (source := node.inputs[0]) is None:
        return value, 0
    sizes = node.inputs[1].const_value if node.inputs[1] is not None else None
    axis = node.attributes.get_int("axis", 0)
    last = axis == -1 or (source.shape is not None and axis == source.shape.rank() - 1)
    if sizes is None or not last:
        return value, 0
    return source, int(sizes.numpy()[: value.index() or 0].sum())


def remove_unread(graph: ir.Graph, value: ir.Value) -> None:
    """Remove the node of `value`, and then those before it, as long as nobody reads them."""
    node = value.producer()
    if node is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    before = [v for v in node.inputs if v is not None]
    graph.remove(node, safe=True)
    for source in before:
        remove_unread(graph, source)
