"""Products with constant matrices as com.microsoft::DynamicQuantizeMatMul, what onnxruntime's dynamic quantizer gives.

Before: ``y = MatMul(x, W)`` with W [K, N], or ``FusedMatMul(h, E, transB=1)`` with E [N, K].
After: ``y = DynamicQuantizeMatMul(x, B, scale)``: B int8 [K, N], symmetric, one scale a column; x is rounded to uint8
with one scale for the whole input when the model runs.

A tied head needs E transposed, so that embedding and head are stored apart.

Letters: N outputs, K inputs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.exporters.passes.quantize_linears import constant_matrix

F32 = npt.NDArray[np.float32]


class DynamicProducts(ir.passes.InPlacePass):
    """Replace every product with a constant matrix by DynamicQuantizeMatMul; the old matrices stay, unused."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if constant_matrix(node) is not None]
        for node in products:
            _replace(model.graph, node)
        if products:
            model.graph.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, bool(products))


def column_scales(weight: F32) -> F32:
    """Return the scales [N] of `weight` [K, N]: the largest magnitude of a column over 127, 1 for empty columns."""
    largest = np.abs(weight).max(axis=0) / np.float32(127)
    return np.where(largest > 0, largest, np.float32(1)).astype(np.float32)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    weight = constant_matrix(node)
    assert weight is not None and weight.shape is not None and weight.const_value is not None
    source, transposed = weight.const_value, node.attributes.get_int("transB", 0) == 1
    inputs, outputs = weight.shape.numpy()[::-1] if transposed else weight.shape.numpy()

    def matrix() -> F32:
        return source.numpy().T if transposed else source.numpy()

    def codes() -> npt.NDArray[np.int8]:
        return np.ascontiguousarray(np.rint(matrix() / column_scales(matrix())).astype(np.int8))

    node.op_type, node.domain = "DynamicQuantizeMatMul", "com.microsoft"
    node.attributes.clear()
    node.resize_inputs(3)
    node.replace_input_with(1, _lazy(graph, f"{weight.name}.int8", ir.DataType.INT8, (inputs, outputs), codes))
    scales = _lazy(graph, f"{weight.name}.scale", ir.DataType.FLOAT, (outputs,), lambda: column_scales(matrix()))
    node.replace_input_with(2, scales)


def _lazy(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], compute: Callable[[], npt.NDArray[Any]]
) -> ir.Value:
    """Return a new initializer of `graph` whose values are computed when it is written."""
    tensor = ir.LazyTensor(lambda: ir.tensor(compute()), dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
