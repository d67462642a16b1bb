"""What is added to a product is added by the product.

Before: ``s = Add(PackedLinear(x), r)`` with r of the product's shape, or a constant of one entry an output.
After: ``s = PackedLinear(x, residual=r)``, or ``PackedLinear(x, bias=r)``.
"""

import onnx_ir as ir

from edgeslim.exporters.packed_nodes import is_linear, matrix_of, operand, set_operand, sole_user


class FuseSums(ir.passes.InPlacePass):
    """Fuse additions of biases and residuals into the PackedLinear nodes before them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in [node for node in model.graph if node.op_type == "Add" and not node.domain]:
            for product, other in (node.inputs, reversed(node.inputs)):
                if product is not None and other is not None and _fuse(model.graph, node, product, other):
                    found = True
                    break
        return ir.passes.PassResult(model, found)


def _fuse(graph: ir.Graph, add: ir.Node, product: ir.Value, other: ir.Value) -> bool:
    linear = product.producer()
    if linear is None or not is_linear(linear) or sole_user(product) is not add:
        return False
    name = _role(linear, product, other)
    if (
        name is None
        or operand(linear, name) is not None
        or (name == "bias" and operand(linear, "residual") is not None)
    ):
        return False
    total = add.outputs[0]
    set_operand(linear, name, other)
    graph.remove(linear)
    graph.insert_before(add, linear)  # the other summand may be made after the product was
    product.name, product.shape, product.type = total.name, total.shape, total.type
    total.replace_all_uses_with(product, replace_graph_outputs=True)
    graph.remove(add, safe=True)
    return True


def _role(linear: ir.Node, product: ir.Value, other: ir.Value) -> str | None:
    if other.is_initializer():
        fits = other.shape is not None and list(other.shape) == [matrix_of(linear).n]
        return "bias" if fits else None
    if product.shape is None or other.shape is None or other.shape != product.shape:
        return None
    return "residual"
