"""Products of the same input in one product.

Before: ``g = PackedLinear(x, G)``; ``u = PackedLinear(x, U)``; ``y = PackedLinear(u, D, gate=g)``.
After: ``v = PackedLinear(x, [G; U])``; ``y = PackedLinear(v, D, gate=v)`` that reads two halves of v's columns.

Before: ``qkv = Concat(PackedLinear(x, Q, bias=a), PackedLinear(x, K, bias=b), PackedLinear(x, V, bias=c))``.
After: ``qkv = PackedLinear(x, [Q; K; V], bias=[a; b; c])``.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.initializers import add_initializer
from edgeslim.exporters.packed_nodes import (
    Matrix,
    is_linear,
    joined,
    joins_columns,
    linear_nodes,
    matrix_of,
    operand,
    operands,
    packed_linear,
    replace,
    set_operand,
    sole_user,
)

Alike = Callable[[Matrix, Matrix], bool]


class JoinLinears(ir.passes.InPlacePass):
    """Join the products that give gate and value of one PackedLinear node, or all columns that a Concat puts side by
    side, where `alike` lets their matrices be one."""

    def __init__(self, alike: Alike = lambda first, second: True) -> None:
        super().__init__()
        self.alike = alike

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in linear_nodes(model.graph):
            parts = _joinable(node, [operand(node, "gate"), operand(node, "x")], self.alike)
            if parts:
                _join_gate(model.graph, node, parts)
                found = True
        for node in [node for node in model.graph if joins_columns(node)]:
            parts = _joinable(node, node.inputs, self.alike)
            if parts:
                replace(model.graph, node, _stacked(model.graph, parts, node.outputs[0]))
                model.graph.remove(parts, safe=True)
                found = True
        return ir.passes.PassResult(model, found)


def _joinable(user: ir.Node, values: Sequence[ir.Value | None], alike: Alike) -> list[ir.Node]:
    """Return the products that make `values` for `user` alone where one product can make all, else nothing."""
    nodes = [value.producer() for value in values if value is not None and sole_user(value) is user]
    linears = [node for node in nodes if node is not None and is_linear(node)]
    if len(linears) < max(len(values), 2):
        return []
    first, *others = linears
    same = all(_reads(first) == _reads(other) for other in others) and operands(first) <= {"x", "norm", "bias"}
    return linears if same and all(alike(matrix_of(first), matrix_of(other)) for other in others) else []


def _reads(node: ir.Node) -> tuple[frozenset[str], list[ir.Value | None], dict[str, object]]:
    """Return what the product is taken of: two nodes that agree in it differ in their matrix and bias alone."""
    names = operands(node)
    values = [operand(node, name) for name in sorted(names - {"bias"})]
    return names, values, {name: attribute.value for name, attribute in node.attributes.items()}


def _stacked(graph: ir.Graph, parts: list[ir.Node], output: ir.Value) -> ir.Node:
    """Return a node, of the name of the first of `parts`, that makes their columns side by side like `output`."""
    first = parts[0]
    x = operand(first, "x")
    assert x is not None
    node = packed_linear(x, joined([matrix_of(part) for part in parts]), output, first.name)
    set_operand(node, "norm", operand(first, "norm"))
    if operand(first, "bias") is not None:
        set_operand(node, "bias", _stacked_bias(graph, [operand(part, "bias") for part in parts]))
    node.attributes.update(first.attributes)
    return node


def _stacked_bias(graph: ir.Graph, biases: list[ir.Value | None]) -> ir.Value:
    arrays, names = [], []
    for bias in biases:
        assert bias is not None and bias.const_value is not None  # FuseSums takes constants alone for a bias
        arrays.append(bias.const_value.numpy())
        names.append(bias.name or "")
    name = "+".join(names)
    return add_initializer(graph, name, ir.tensor(np.concatenate(arrays), name=name))


def _join_gate(graph: ir.Graph, node: ir.Node, parts: list[ir.Node]) -> None:
    gate, columns = parts[0].outputs[0], [matrix_of(part).n for part in parts]
    shape = None if gate.shape is None else ir.Shape([*gate.shape[:-1], sum(columns)])
    both = _stacked(graph, parts, ir.Value(name=f"{gate.name}_and_value", shape=shape, type=gate.type))
    graph.insert_before(node, both)
    for name, start in (("gate", 0), ("x", columns[0])):
        set_operand(node, name, both.outputs[0])
        node.attributes[f"{name}_start"] = ir.AttrInt64(f"{name}_start", start)
    graph.remove(parts, safe=True)
