"""Gemm as the two operators that every other pass knows.

Before: ``y = Gemm(x, W, b)``, W [K, N] or with transB [N, K], b of N entries or absent.
After: ``p = MatMul(x, W)`` or ``FusedMatMul(x, W, transB=1)``; ``y = Add(p, b)``.
"""

import onnx_ir as ir


class PlainProducts(ir.passes.InPlacePass):
    """Split every Gemm that is a plain product with a constant matrix and an optional constant bias."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == "Gemm" and not node.domain and _is_plain(node)]
        for node in nodes:
            _split(model.graph, node)
        if nodes:
            model.graph.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, bool(nodes))


def _is_plain(node: ir.Node) -> bool:
    right, bias = node.inputs[1], _bias(node)
    if right is None or not right.is_initializer() or right.shape is None or right.shape.rank() != 2:
        return False
    numbers = node.attributes
    unscaled = numbers.get_float("alpha", 1.0) == numbers.get_float("beta", 1.0) == 1 and not numbers.get_int(
        "transA", 0
    )
    outputs = right.shape[0] if numbers.get_int("transB", 0) else right.shape[1]
    return unscaled and (bias is None or (bias.shape is not None and list(bias.shape) == [outputs]))


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _split(graph: ir.Graph, node: ir.Node) -> None:
    x, weight, bias, result = node.inputs[0], node.inputs[1], _bias(node), node.outputs[0]
    if node.attributes.get_int("transB", 0):
        product = ir.Node("com.microsoft", "FusedMatMul", [x, weight], [ir.AttrInt64("transB", 1)], name=node.name)
    else:
        product = ir.Node("", "MatMul", [x, weight], name=node.name)
    total = product if bias is None else ir.Node("", "Add", [product.outputs[0], bias], name=f"{node.name}_bias")
    product.outputs[0].name = f"{result.name}_product"
    for new in (product, total):
        new.outputs[0].type, new.outputs[0].shape = result.type, result.shape
    graph.insert_before(node, [product] if bias is None else [product, total])
    total.outputs[0].name = result.name
    result.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
