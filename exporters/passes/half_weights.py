"""Matrices in half precision on disk, for stock operators.

Before: ``y = MatMul(x, W)`` with W float32.
After: ``y = MatMul(x, Cast(W'))`` with W' float16; onnxruntime widens it once when the model is loaded.
"""

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.initializers import add_initializer, drop_unused
from edgeslim.exporters.passes.quantize_linears import is_token_lookup


class HalfWeights(ir.passes.InPlacePass):
    """Store every float32 matrix that a product, or the lookup of tokens, reads as float16 and widen it by a Cast."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        values = [value for value in model.graph.initializers.values() if _is_matrix(value)]
        for value in values:
            _halve(model.graph, value)
        drop_unused(model.graph)
        return ir.passes.PassResult(model, bool(values))


def _is_matrix(value: ir.Value) -> bool:
    products = {"MatMul", "FusedMatMul", "Gemm", "Conv"}
    if value.dtype != ir.DataType.FLOAT or value.shape is None or value.shape.rank() not in (2, 4):
        return False
    if value.shape.rank() == 4 and list(value.shape[2:]) != [1, 1]:  # a convolution that is no product
        return False
    return any(use.node.op_type in products or is_token_lookup(use.node) for use in value.uses())


def _halve(graph: ir.Graph, value: ir.Value) -> None:
    source, shape = value.const_value, value.shape
    assert source is not None and shape is not None
    name = f"{value.name}.half"
    half = ir.LazyTensor(
        lambda: ir.tensor(source.numpy().astype(np.float16)), dtype=ir.DataType.FLOAT16, shape=shape, name=name
    )
    stored = add_initializer(graph, name, half)
    cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", ir.DataType.FLOAT)], name=f"{name}.widened")
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = f"{name}.single", value.type, shape
    uses = list(value.uses())
    graph.insert_before(graph[0], cast)
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
