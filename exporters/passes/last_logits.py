"""Logits of the last position only: what generation needs.

Before: ``y = MatMul(a, U)``; ``n = SkipSimplifiedLayerNormalization(y, r, w)`` [B, T, H]; ``logits = MatMul(n, W)``
[B, T, V]. After: the same of ``Gather(a, [-1], axis=1)`` and ``Gather(r, [-1], axis=1)`` [B, 1, H]: all of the last
layer that follows attention, a convolution or a scan, which are no functions of each position by itself.

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
_BY_POSITION = {*_POINTWISE, "Gelu", "QuickGelu", "Relu", "Sigmoid", "Sub", "Swish"}
"""Operators of one or two tensors that run over positions, or of one and a constant."""
_PACKED = (0, 6, 8)
"""Inputs of PackedLinear that run over positions: x, gate, residual."""
_INDEX = "last_position"


class LastLogits(ir.passes.InPlacePass):
    """Cut what the head, and all that only it reads, takes of positions to the last one.

    Raises: ExportError when `logits` is no pointwise function of a matrix product.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if _INDEX in model.graph.initializers:
            return ir.passes.PassResult(model, False)
        cut = _nodes_of_one_position(model.graph, find_head(model.graph))
        index, gathered = _last_index(model.graph), dict[ir.Value, ir.Value]()
        for node in [node for node in model.graph if node in cut]:
            for position in cut[node]:
                source = node.inputs[position]
                if source is None or source.producer() in cut:
                    continue
                if source not in gathered:
                    gathered[source] = _gather_last(model.graph, node, source, index, len(gathered))
                node.replace_input_with(position, gathered[source])
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


def _nodes_of_one_position(graph: ir.Graph, head: ir.Node) -> dict[ir.Node, list[int]]:
    """Return the head, and before it the nodes that work by position and whose outputs only such nodes read, each with
    its inputs that run over positions."""
    found = {head: _positions(head)}
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        uses = [use for value in node.outputs for use in value.uses()]
        if not uses or not outputs.isdisjoint(node.outputs):
            continue
        positions = _positions(node)
        if positions and all(use.idx in found.get(use.node, ()) for use in uses):
            found[node] = positions
    return found


def _positions(node: ir.Node) -> list[int]:
    """Return which inputs of `node` run over positions if its outputs do, none where these are no function of each
    position by itself."""
    if node.op_type == "PackedLinear":
        return [index for index in _PACKED if index < len(node.inputs) and node.inputs[index] is not None]
    if node.op_type in HEADS:
        return [0]
    if node.op_type in NORMS:
        return list(range(NORMS[node.op_type]))
    if node.op_type not in _BY_POSITION:
        return []
    inputs = {index: value for index, value in enumerate(node.inputs) if value is not None and not _is_constant(value)}
    if len(inputs) > 1 and not all(_has_positions(value) for value in inputs.values()):
        return []  # one may be spread over positions
    return list(inputs)


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _has_positions(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 3


def _last_index(graph: ir.Graph) -> ir.Value:
    value = ir.Value(name=_INDEX, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    value.const_value = ir.tensor([-1], dtype=ir.DataType.INT64, name=_INDEX)
    graph.register_initializer(value)
    return value


def _gather_last(graph: ir.Graph, reader: ir.Node, source: ir.Value, index: ir.Value, number: int) -> ir.Value:
    gather = ir.Node("", "Gather", [source, index], [ir.AttrInt64("axis", 1)], name=f"{_INDEX}_{number}")
    last = gather.outputs[0]
    last.name, last.type, last.shape = f"{_INDEX}_{number}_out", source.type, source.shape
    graph.insert_before(reader, gather)
    return last


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
