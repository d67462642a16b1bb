"""Logits of the last position only: what generation needs.

Before: ``n = SkipSimplifiedLayerNormalization(a, b, w)`` [B, T, H]; ``logits = MatMul(n, W)`` [B, T, V].
After: ``n = SkipSimplifiedLayerNormalization(Gather(a, [-1], axis=1), Gather(b, [-1], axis=1), w)`` [B, 1, H];
``logits = MatMul(n, W)`` [B, 1, V]. A head that norms by itself, PackedLinear(s, norm=w), gets Gather(s, [-1]).

A prompt's full logits are its largest tensor by far: 1,000 tokens of a 50,000 token vocabulary fill 200 MB.

Letters: B batch, T tokens, H hidden size, V vocabulary.
"""

import onnx_ir as ir

from edgeslim.errors import ExportError

HEADS = {"MatMul", "FusedMatMul", "MatMulNBits", "PackedLinear"}
NORMS = {
    "SkipSimplifiedLayerNormalization": 2,
    "SkipLayerNormalization": 2,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "LayerNormalization": 1,
}
"""Final norms and how many leading inputs of theirs run over positions."""
_POINTWISE = {"Add", "Cast", "Clip", "Div", "Mul", "Tanh"}
_INDEX = "last_position"


class LastLogits(ir.passes.InPlacePass):
    """Cut the input of the final norm (of the head, where the norm cannot be moved) to the last position.

    Raises: ExportError when `logits` is no pointwise function of a matrix product.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if _INDEX in model.graph.initializers:
            return ir.passes.PassResult(model, False)
        head = find_head(model.graph)
        target, count = _cut_point(head)
        index = _last_index(model.graph)
        for position in range(count):
            _gather_last(model.graph, target, position, index)
        _relabel(model.graph)
        return ir.passes.PassResult(model, True)


def find_head(graph: ir.Graph) -> ir.Node:
    """Return the matrix product whose result, after pointwise operators, is `logits`.

    Raises: ExportError when there is none.
    """
    value: ir.Value | None = next((v for v in graph.outputs if v.name == "logits"), None)
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in HEADS:
            return node
        if node.op_type not in _POINTWISE:
            raise ExportError(f"cannot find the head: logits come from {node.op_type} {node.name}")
        value = next((v for v in node.inputs if v is not None and not v.is_initializer()), None)
    raise ExportError("cannot find the head: no output logits comes from a matrix product")


def _cut_point(head: ir.Node) -> tuple[ir.Node, int]:
    """Return the node whose first inputs are to be cut, and how many: the final norm where only the head reads it."""
    hidden = head.inputs[0]
    norm = hidden.producer() if hidden is not None else None
    if norm is None or norm.op_type not in NORMS:
        return head, 1
    uses = [use for output in norm.outputs for use in output.uses()]
    return (norm, NORMS[norm.op_type]) if len(uses) == 1 else (head, 1)


def _last_index(graph: ir.Graph) -> ir.Value:
    value = ir.Value(name=_INDEX, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    value.const_value = ir.tensor([-1], dtype=ir.DataType.INT64, name=_INDEX)
    graph.register_initializer(value)
    return value


def _gather_last(graph: ir.Graph, target: ir.Node, position: int, index: ir.Value) -> None:
    source = target.inputs[position]
    gather = ir.Node("", "Gather", [source, index], [ir.AttrInt64("axis", 1)], name=f"{_INDEX}_{position}")
    gather.outputs[0].name = f"{_INDEX}_{position}_out"
    if source is not None:
        gather.outputs[0].type = source.type
    graph.insert_before(target, gather)
    target.replace_input_with(position, gather.outputs[0])


def _relabel(graph: ir.Graph) -> None:
    """Set the sequence dimension to 1 on every value from the cut on."""
    reached = {v for node in graph if (node.name or "").startswith(f"{_INDEX}_") for v in node.outputs}
    for node in graph:
        if reached.isdisjoint(v for v in node.inputs if v is not None):
            continue
        for value in node.outputs:
            reached.add(value)
            if value.shape is not None and value.shape.rank() == 3:
                value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
