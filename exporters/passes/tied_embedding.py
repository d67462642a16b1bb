"""A tied head reads the embedding's rows where they lie, instead of a transposed copy.

Before: ``x = Gather(E, ids)`` … ``logits = MatMul(h, Transpose(E))``: onnxruntime folds the Transpose when it loads the
model, so the largest matrix is in memory twice.
After: ``logits = com.microsoft::FusedMatMul(h, E, transB=1)``: one initializer E [V, H], used in place.
"""

import onnx_ir as ir


class TiedEmbedding(ir.passes.InPlacePass):
    """Replace ``MatMul(h, Transpose(E))`` by ``FusedMatMul(h, E, transB=1)`` where E is an initializer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            weight = transposed_weight(node)
            if weight is not None:
                _fuse(model.graph, node, weight)
                modified = True
        if modified:
            model.graph.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, modified)


def transposed_weight(node: ir.Node) -> ir.Value | None:
    """Return E when `node` is ``MatMul(h, Transpose(E))`` with an initializer E [V, H], else None."""
    if node.op_type != "MatMul" or node.domain or (right := node.inputs[1]) is None:
        return None
    transpose = right.producer()
    if transpose is None or transpose.op_type != "Transpose" or (source := transpose.inputs[0]) is None:
        return None
    if not source.is_initializer() or source.shape is None or source.shape.rank() != 2:
        return None
    return source if list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0] else None


def _fuse(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    right = node.inputs[1]
    node.op_type, node.domain = "FusedMatMul", "com.microsoft"
    node.attributes["transB"] = ir.AttrInt64("transB", 1)
    node.replace_input_with(1, weight)
    transpose = right.producer() if right is not None else None
    if transpose is not None and not transpose.outputs[0].uses():
        graph.remove(transpose, safe=True)
