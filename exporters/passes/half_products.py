"""Products in half precision, their weights constants of that type.

Before: ``y = MatMul(x, W)`` with W (or Transpose(E)) float32; ``e = Gather(E, input_ids)``.
After: ``y = Cast(MatMul(Cast(x, float16), W'), float)`` with W' float16; ``e = Cast(Gather(E', input_ids), float)``.

The constants stand at the products themselves, where TensorRT looks for 2:4 sparsity; a Cast between would hide them.
"""

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.initializers import add_initializer, drop_unused
from edgeslim.exporters.passes.quantize_linears import constant_matrix, is_token_lookup
from edgeslim.exporters.passes.tied_embedding import transposed_weight

_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


class HalfProducts(ir.passes.InPlacePass):
    """Take products with constant matrices, and the lookup of tokens, in float16."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, found = model.graph, False
        for node in list(graph):
            weight = constant_matrix(node) or transposed_weight(node)
            table = node.inputs[0] if weight is None and is_token_lookup(node) else None
            if weight is not None and weight.dtype == _SINGLE:
                _halve_product(graph, node, weight)
            elif table is not None and table.dtype == _SINGLE:
                node.replace_input_with(0, _half(graph, table))
                _widen_output(graph, node)
            else:
                continue
            found = True
        drop_unused(graph)
        return ir.passes.PassResult(model, found)


def set_single_products(model: ir.Model) -> None:
    """Let the products of `model` compute in float32 with their rounded weights."""
    single: set[ir.Value] = set()  # what was half
    for node in list(model.graph):
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == _HALF:
            node.attributes["to"] = ir.AttrInt64("to", int(_SINGLE))
        elif first not in single:
            continue
        elif node.op_type == "MatMul" and (weight := node.inputs[1]) is not None:
            node.replace_input_with(1, _cast(model.graph, node, weight, _SINGLE, f"{node.name}_weight"))
        for output in node.outputs:
            output.type = ir.TensorType(_SINGLE)
            single.add(output)


def _halve_product(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    x, right = node.inputs[0], node.inputs[1]
    assert x is not None and right is not None
    half = _half(graph, weight)
    if right is not weight:  # a transposed embedding
        turned = ir.node("Transpose", [half], {"perm": [1, 0]}, name=f"{node.name}_transposed")
        turned.outputs[0].name = f"{half.name}_transposed"
        graph.insert_before(node, turned)
        half = turned.outputs[0]
    node.replace_input_with(0, _cast(graph, node, x, _HALF, f"{node.name}_x"))
    node.replace_input_with(1, half)
    _widen_output(graph, node)
    before = right.producer()
    if before is not None and not right.uses():
        graph.remove(before, safe=True)


def _half(graph: ir.Graph, value: ir.Value) -> ir.Value:
    source, shape = value.const_value, value.shape
    assert source is not None and shape is not None
    name = f"{value.name}.half"
    return add_initializer(
        graph,
        name,
        ir.LazyTensor(lambda: ir.tensor(source.numpy().astype(np.float16)), dtype=_HALF, shape=shape, name=name),
    )


def _widen_output(graph: ir.Graph, node: ir.Node) -> None:
    """Let users of the output of `node` read it as float32."""
    output = node.outputs[0]
    wide = ir.node("Cast", [output], {"to": int(_SINGLE)}, name=f"{node.name}_widened")
    graph.insert_after(node, wide)
    result = wide.outputs[0]
    result.name, result.shape, result.type = output.name, output.shape, ir.TensorType(_SINGLE)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    wide.replace_input_with(0, output)
    output.name, output.type = f"{output.name}_half", ir.TensorType(_HALF)


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": int(to)}, name=f"{name}_cast")
    node.outputs[0].name, node.outputs[0].type = f"{name}_as_{to.name.lower()}", ir.TensorType(to)
    graph.insert_before(before, node)
    return node.outputs[0]
