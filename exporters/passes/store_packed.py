"""The packed tensors themselves: the last step of lowering to operators of ours.

Before: PackedLinear and PackedGather nodes that carry their matrix as metadata.
After: the same with constant inputs values, scales, masks and offsets, their attributes, and the function body that
each variant needs. A matrix is packed once, written to a temporary file, and mapped from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.exporters.functions import (
    DOMAIN,
    FUNCTION,
    VERSION,
    LinearVariant,
    gather_function,
    linear_function,
)
from edgeslim.exporters.initializers import add_initializer, drop_unused
from edgeslim.exporters.packed import Form, pack
from edgeslim.exporters.packed_nodes import Matrix, is_gather, is_linear, matrix_of, operand, operands, set_operand
from edgeslim.exporters.packing import F32

_TYPES = {
    "uint8": ir.DataType.UINT8,
    "int64": ir.DataType.INT64,
    "float16": ir.DataType.FLOAT16,
    "float32": ir.DataType.FLOAT,
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The form that a matrix gets, and why, in a few words; its scales [n, groups] where they are given."""

    form: Form
    reason: str
    scales: npt.NDArray[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """What became of a matrix: its choice, bytes, and the share of its weights that is zero and that is stored."""

    matrix: Matrix
    choice: Choice
    nbytes: int
    sparsity: float
    density: float
    tensors: dict[str, ir.Value]


class StorePacked(ir.passes.InPlacePass):
    """Pack every matrix in the form that `choose` gives it. Afterwards `stored` tells what became of each node's.

    `choose` gets the matrix and its weights [n, k]; `scratch` is a file for the packed tensors, which must outlive the
    model; `activations` is "int8" or "float".
    """

    def __init__(
        self,
        choose: Callable[[Matrix, F32], Choice],
        scratch: Path,
        *,
        activations: str = "int8",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.choose, self.scratch, self.activations, self.progress = choose, scratch, activations, progress
        self.stored: dict[str, StoredMatrix] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if is_linear(node) or is_gather(node)]
        finished: dict[Matrix, StoredMatrix] = {}
        for done, node in enumerate(nodes):
            matrix = matrix_of(node)
            if matrix not in finished:
                finished[matrix] = self._store(model.graph, matrix, f"packed.{len(finished)}.{matrix.names[0]}")
            self._finish(model, node, finished[matrix])
            self.stored[node.name or ""] = finished[matrix]
            self.progress(done + 1, len(nodes))
        if nodes:
            model.graph.opset_imports.setdefault(DOMAIN, VERSION)
        drop_unused(model.graph)
        return ir.passes.PassResult(model, bool(nodes))

    def _store(self, graph: ir.Graph, matrix: Matrix, name: str) -> StoredMatrix:
        dense = matrix.dense()
        choice = self.choose(matrix, dense)
        packed = pack(dense, choice.form, choice.scales)
        tensors = {part: self._write(graph, f"{name}.{part}", array) for part, array in packed.tensors.items()}
        return StoredMatrix(
            matrix=matrix,
            choice=choice,
            nbytes=packed.nbytes,
            sparsity=round(1 - float(np.count_nonzero(dense)) / max(dense.size, 1), 6),
            density=round(packed.stored / max(dense.size, 1), 6),
            tensors=tensors,
        )

    def _write(self, graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
        with self.scratch.open("ab") as file:
            offset = file.tell()
            file.write(np.ascontiguousarray(array).tobytes())
        dtype = _TYPES[array.dtype.name]
        place = (self.scratch.name, offset, array.nbytes, dtype)
        tensor = ir.ExternalTensor(*place, shape=ir.Shape(array.shape), name=name, base_dir=self.scratch.parent)
        return add_initializer(graph, name, tensor)

    def _finish(self, model: ir.Model, node: ir.Node, stored: StoredMatrix) -> None:
        matrix, form = stored.matrix, stored.choice.form
        for part, value in stored.tensors.items():
            set_operand(node, part, value)
        attributes = form.attributes(matrix.n, matrix.k)
        if is_linear(node):
            _declare_shape(node)
            attributes["activations"] = self.activations
            function = linear_function(_variant(node, form, self.activations))
            for name in ("x_start", "gate_start"):
                attributes[name] = node.attributes.get_int(name, 0)
            attributes["epsilon"] = node.attributes.get_float("epsilon", 0.0)
        else:
            function = gather_function(form)
        for name, value in attributes.items():
            node.attributes[name] = _attribute(name, value)
        node.overload = function.overload
        model.functions.setdefault(function.identifier(), function)


def _declare_shape(node: ir.Node) -> None:
    """Declare the shape of the product where it is open: a function body does not tell it, and the shape inference of
    com.microsoft's GroupQueryAttention takes an open width for 0, which onnxruntime-web refuses."""
    output, x = node.outputs[0], operand(node, "x")
    if output.shape is None and x is not None and x.shape is not None:
        output.shape = ir.Shape([*x.shape[:-1], matrix_of(node).n])
        output.type = output.type or ir.TensorType(ir.DataType.FLOAT)


def set_float_activations(model: ir.Model) -> None:
    """Let the PackedLinear nodes of a stored `model` compute with float32 activations."""
    for node in [node for node in model.graph if is_linear(node)]:
        function = linear_function(_variant(node, _form_of(node), "float"))
        node.attributes["activations"] = ir.AttrString("activations", "float")
        node.overload = function.overload
        model.functions.setdefault(function.identifier(), function)


def _variant(node: ir.Node, form: Form, activations: str) -> LinearVariant:
    function = node.attributes.get_string(FUNCTION, "")
    return LinearVariant(form=form, activations=activations, optional=operands(node), function=function)


def _form_of(node: ir.Node) -> Form:
    """Return the form that the attributes of a stored node say."""
    number = node.attributes.get_int
    pattern = (number("pattern_n", 0), number("pattern_m", 0))
    return Form(
        layout=node.attributes.get_string("layout"),  # type: ignore[arg-type]
        bits=number("bits", 8),
        group=number("group", 0),
        pattern=pattern if pattern[1] else None,
    )


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, int(value))
