"""Gate and value of a gated feed-forward layer in one product.

Before: ``g = PackedLinear(x, G)``; ``u = PackedLinear(x, U)``; ``y = PackedLinear(u, D, gate=g)``.
After: ``v = PackedLinear(x, [G; U])``; ``y = PackedLinear(v, D, gate=v)`` that reads two halves of v's columns.
"""

from collections.abc import Callable

import onnx_ir as ir

from edgeslim.exporters.packed_nodes import (
    Matrix,
    is_linear,
    joined,
    linear_nodes,
    matrix_of,
    operand,
    operands,
    packed_linear,
    set_operand,
    sole_user,
)


class JoinLinears(ir.passes.InPlacePass):
    """Join the products that give gate and value of one PackedLinear node, where `alike` lets their matrices be one."""

    def __init__(self, alike: Callable[[Matrix, Matrix], bool] = lambda first, second: True) -> None:
        super().__init__()
        self.alike = alike

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in linear_nodes(model.graph):
            gate, value = operand(node, "gate"), operand(node, "x")
            if gate is not None and value is not None and _joinable(node, gate, value, self.alike):
                _join(model.graph, node, gate, value)
                found = True
        return ir.passes.PassResult(model, found)


def _joinable(node: ir.Node, gate: ir.Value, value: ir.Value, alike: Callable[[Matrix, Matrix], bool]) -> bool:
    first, second = gate.producer(), value.producer()
    if first is None or second is None or first is second or not is_linear(first) or not is_linear(second):
        return False
    same = _reads(first) == _reads(second) and operands(first) <= {"x", "norm"}
    same = same and alike(matrix_of(first), matrix_of(second))
    return same and sole_user(gate) is node and sole_user(value) is node


def _reads(node: ir.Node) -> tuple[frozenset[str], list[ir.Value | None], dict[str, object]]:
    """Return what the product is taken of: two nodes that agree in it differ in their matrix alone."""
    names = operands(node)
    values = [operand(node, name) for name in sorted(names)]
    return names, values, {name: attribute.value for name, attribute in node.attributes.items()}


def _join(graph: ir.Graph, node: ir.Node, gate: ir.Value, value: ir.Value) -> None:
    first, second = gate.producer(), value.producer()
    assert first is not None and second is not None
    x = operand(first, "x")
    assert x is not None
    matrices = [matrix_of(first), matrix_of(second)]
    shape = None if gate.shape is None else ir.Shape([*gate.shape[:-1], matrices[0].n + matrices[1].n])
    output = ir.Value(name=f"{gate.name}_and_value", shape=shape, type=gate.type)
    both = packed_linear(x, joined(matrices), output, first.name)
    set_operand(both, "norm", operand(first, "norm"))
    both.attributes.update(first.attributes)
    graph.insert_before(node, both)
    for name, start in (("gate", 0), ("x", matrices[0].n)):
        set_operand(node, name, both.outputs[0])
        node.attributes[f"{name}_start"] = ir.AttrInt64(f"{name}_start", start)
    graph.remove([first, second], safe=True)
