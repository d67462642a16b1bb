"""A norm moves into the products that read it: it costs them little, and nothing is handed over.

Before: ``n = RMSNormalization(s, w)``; ``y = PackedLinear(n)``, and nobody but such nodes reads n.
After: ``y = PackedLinear(s, norm=w)``.
"""

import onnx_ir as ir

from edgeslim.exporters.packed_nodes import is_linear, matrix_of, operand, set_operand


class FuseNorm(ir.passes.InPlacePass):
    """Fuse RMSNormalization into PackedLinear nodes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if _fits(node)]
        for node in nodes:
            for use in list(node.outputs[0].uses()):
                set_operand(use.node, "x", node.inputs[0])
                set_operand(use.node, "norm", node.inputs[1])
                use.node.attributes["epsilon"] = ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-5))
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, bool(nodes))


def plain_norm(node: ir.Node | None) -> list[object] | None:
    """Return the shape of the weight where `node` is an RMSNormalization of last axes by a constant one, else None."""
    if node is None or node.op_type != "RMSNormalization" or node.domain:
        return None
    weight, plain = node.inputs[1], node.attributes.get_int("axis", -1) == -1 and "stash_type" not in node.attributes
    if not plain or weight is None or not weight.is_initializer() or weight.shape is None:
        return None
    return list(weight.shape)


def _fits(node: ir.Node) -> bool:
    shape, norm = plain_norm(node), node.outputs[0]
    uses = list(norm.uses())
    if not uses or norm.is_graph_output() or shape is None:
        return False
    return all(_takes_norm(use.node, norm, shape) for use in uses)


def _takes_norm(user: ir.Node, norm: ir.Value, shape: list[object]) -> bool:
    if not is_linear(user) or operand(user, "x") is not norm or shape != [matrix_of(user).k]:
        return False
    return operand(user, "gate") is None and operand(user, "norm") is None and operand(user, "residual") is not norm
