"""Products with constant matrices, and the token embedding, become operators of ours.

Before: ``y = MatMul(x, W)`` or ``FusedMatMul(x, E, transB=1)``; ``e = Gather(E, input_ids)``.
After: ``y = PackedLinear(x, …)``; ``e = PackedGather(input_ids, …)``; a tied head and embedding share one matrix.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.layers import layer_name
from edgeslim.exporters.packed_nodes import Matrix, packed_gather, packed_linear, replace
from edgeslim.exporters.packing import F32
from edgeslim.exporters.passes.quantize_linears import constant_matrix, is_token_lookup


class PackedLinears(ir.passes.InPlacePass):
    """Replace the products with a constant matrix that `select` accepts; with `lookups`, the token embedding too."""

    def __init__(self, *, select: Callable[[ir.Node], bool] = lambda node: True, lookups: bool = True) -> None:
        super().__init__()
        self.select, self.lookups = select, lookups
        self._matrices: dict[tuple[str, bool], Matrix] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in list(model.graph):
            new = self._replacement(node)
            if new is not None:
                replace(model.graph, node, new)
                found = True
        return ir.passes.PassResult(model, found)

    def _replacement(self, node: ir.Node) -> ir.Node | None:
        if self.lookups and is_token_lookup(node):
            table, ids = node.inputs[0], node.inputs[1]
            assert table is not None and ids is not None
            return packed_gather(ids, self._matrix(table, transposed=True), node.outputs[0], node.name)
        weight = constant_matrix(node)
        x = node.inputs[0] if weight is not None and self.select(node) else None
        if weight is None or x is None:
            return None
        transposed = node.attributes.get_int("transB", 0) == 1
        return packed_linear(x, self._matrix(weight, transposed=transposed), node.outputs[0], node.name)

    def _matrix(self, weight: ir.Value, *, transposed: bool) -> Matrix:
        """Return the matrix [n, k] of `weight`, stored so where `transposed` and else as [k, n]; one for all users."""
        key = (weight.name or "", transposed)
        if key not in self._matrices:
            assert weight.shape is not None
            n, k = weight.shape.numpy() if transposed else weight.shape.numpy()[::-1]
            dense = _reader(weight, transposed=transposed)
            self._matrices[key] = Matrix(names=(layer_name(weight.name or ""),), n=int(n), k=int(k), dense=dense)
        return self._matrices[key]


def _reader(weight: ir.Value, *, transposed: bool) -> Callable[[], F32]:
    source = weight.const_value
    assert source is not None

    def read() -> F32:
        array = source.numpy()
        return np.ascontiguousarray(array if transposed else array.T, dtype=np.float32)

    return read
