"""Sum and norm apart, where the norm can then move into the products that read it.

Before: ``n, _, _, s = SkipSimplifiedLayerNormalization(a, b, w)``, n read by PackedLinear nodes only.
After: ``s = Add(a, b)``; ``n = RMSNormalization(s, w)``.
"""

import onnx_ir as ir

from edgeslim.exporters.packed_nodes import is_linear

_SUM = 3  # which output is a + b


class SplitSkipNorms(ir.passes.InPlacePass):
    """Split every SkipSimplifiedLayerNormalization whose norm only PackedLinear nodes read."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == "SkipSimplifiedLayerNormalization" and _fits(node)]
        for node in nodes:
            split_skip_norm(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _fits(node: ir.Node) -> bool:
    norm = node.outputs[0]
    weight = node.inputs[2]
    readers = [use.node for use in norm.uses()]
    plain = len([v for v in node.inputs if v is not None]) == 3 and not any(o.uses() for o in node.outputs[1:_SUM])
    only = bool(readers) and not norm.is_graph_output() and all(is_linear(reader) for reader in readers)
    return plain and only and weight is not None and weight.is_initializer()


def split_skip_norm(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Replace `node` by a sum and a norm; return the sum's node."""
    first, second, weight = node.inputs[:3]
    add = ir.Node("", "Add", [first, second], name=f"{node.name}_sum")
    total = add.outputs[0]
    norm_output = node.outputs[0]
    total.type, total.shape = norm_output.type, norm_output.shape
    total.name = f"{norm_output.name}_sum"
    epsilon = ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-12))
    norm = ir.Node("", "RMSNormalization", [total, weight], [ir.AttrInt64("axis", -1), epsilon], name=node.name)
    norm.outputs[0].name, norm.outputs[0].type, norm.outputs[0].shape = (
        norm_output.name,
        norm_output.type,
        norm_output.shape,
    )
    graph.insert_before(node, [add, norm])
    norm_output.replace_all_uses_with(norm.outputs[0])
    if len(node.outputs) > _SUM:
        node.outputs[_SUM].replace_all_uses_with(total, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return add
