"""A gate, or a function of what is multiplied, moves into the product behind it.

Before: ``h = Mul(u, Mul(g, Sigmoid(g)))``; ``y = PackedLinear(h)`` (with or without a norm between, see FuseNorm).
After: ``y = PackedLinear(u, gate=g)``, and where g or u is a part of Split(v), columns of v are read in place.

Before: ``h = Mul(u, Gelu(g))``; ``y = PackedLinear(h)``. After: ``y = PackedLinear(u, gate=g, function="gelu")``.

Before: ``h = Gelu(u)``; ``y = PackedLinear(h)``. After: ``y = PackedLinear(u, function="gelu")``. So too with Relu, its
square, and silu.
"""

import onnx_ir as ir

from edgeslim.exporters.functions import FUNCTION
from edgeslim.exporters.packed_nodes import linear_nodes, operand, set_operand, sole_user

_SILU = "silu"
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


class FuseGate(ir.passes.InPlacePass):
    """Fuse ``x * function(gate)``, or ``function(x)``, into PackedLinear nodes that alone read it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in linear_nodes(model.graph):
            x, has_function = operand(node, "x"), operand(node, "gate") is not None or FUNCTION in node.attributes
            if x is not None and sole_user(x) is node and not has_function:
                found = _fuse_gate(model.graph, node, x) or _fuse_function(model.graph, node, x) or found
        return ir.passes.PassResult(model, found)


def gated_parts(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return (u, g) when `value` is u * silu(g), else None."""
    parts = _gated(value)
    return parts[:2] if parts is not None and parts[2] == _SILU else None


def _gated(value: ir.Value) -> tuple[ir.Value, ir.Value, str] | None:
    """Return (u, g, function) when `value` is u * function(g), else None."""
    product = value.producer()
    if product is None or product.op_type != "Mul" or product.domain:
        return None
    for u, activated in (product.inputs, reversed(product.inputs)):
        parts = _activated(activated)
        if u is not None and parts is not None and sole_user(activated) is product:
            return u, *parts
    return None


def _activated(value: ir.Value | None) -> tuple[ir.Value, str] | None:
    """Return (g, function) when `value` is function(g), else None."""
    node = value.producer() if value is not None else None
    if node is None or node.domain:
        return None
    if node.op_type == "Mul":
        return _silu_argument(node) or _squared_relu_argument(node)
    function = None
    if node.op_type == "Gelu":
        function = _GELUS.get(node.attributes.get_string("approximate", "none"))
    elif node.op_type == "Relu":
        function = "relu"
    return None if function is None or (argument := node.inputs[0]) is None else (argument, function)


def _silu_argument(product: ir.Node) -> tuple[ir.Value, str] | None:
    for gate, sigmoid in (product.inputs, reversed(product.inputs)):
        node = sigmoid.producer() if sigmoid is not None else None
        is_sigmoid = node is not None and node.op_type == "Sigmoid" and node.inputs[0] is gate
        if gate is not None and is_sigmoid and sole_user(sigmoid) is product:
            return gate, _SILU
    return None


def _squared_relu_argument(product: ir.Node) -> tuple[ir.Value, str] | None:
    root = product.inputs[0]
    node = root.producer() if root is not None and root is product.inputs[1] else None
    if root is None or node is None or node.op_type != "Relu" or root.is_graph_output() or len(list(root.uses())) != 2:
        return None
    argument = node.inputs[0]
    return None if argument is None else (argument, "relu_squared")


def _fuse_gate(graph: ir.Graph, node: ir.Node, old: ir.Value) -> bool:
    parts = _gated(old)
    if parts is None or not _alike(*parts[:2]):
        return False
    u, gate, function = parts
    _read(node, "x", u)
    _read(node, "gate", gate)
    if function != _SILU:
        node.attributes[FUNCTION] = ir.AttrString(FUNCTION, function)
    remove_unread(graph, old)
    return True


def _alike(u: ir.Value, gate: ir.Value) -> bool:
    """Return whether nothing says that one of them is spread to the shape of the other."""
    if u.is_initializer() or gate.is_initializer():
        return False
    if u.shape is None or gate.shape is None:
        return True
    numbers = [[d if isinstance(d, int) else None for d in value.shape or ()] for value in (u, gate)]
    return numbers[0] == numbers[1]


def _fuse_function(graph: ir.Graph, node: ir.Node, old: ir.Value) -> bool:
    parts = _activated(old)
    if parts is None:
        return False
    _read(node, "x", parts[0])
    node.attributes[FUNCTION] = ir.AttrString(FUNCTION, parts[1])
    remove_unread(graph, old)
    return True


def _read(node: ir.Node, name: str, value: ir.Value) -> None:
    """Let the operand `name` be `value`, or the columns of what `value` is a part of."""
    source, start = _whole(value)
    set_operand(node, name, source)
    if start:
        node.attributes[f"{name}_start"] = ir.AttrInt64(f"{name}_start", start)


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
    before = [v for v in dict.fromkeys(node.inputs) if v is not None]
    graph.remove(node, safe=True)
    for source in before:
        remove_unread(graph, source)
