"""Nodes of standard operators, made one after the other by calls: ``ops.Add(x, [1])``."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.initializers import add_initializer

Operand = ir.Value | int | float | list[int] | None

BOOL, FLOAT, INT32, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
END = (1 << 63) - 1
"""As the end of a slice: up to the last."""


class Ops:
    """Makes nodes for a graph; `nodes` holds them, in order, until somebody puts them where they belong.

    Numbers become constants of `graph`: an int or float a scalar, a list of ints a vector. Names begin with `prefix`.
    Without a graph, as in a function, which has no constants of its own, they become nodes too.
    """

    def __init__(self, graph: ir.Graph | None, prefix: str, numbers: Iterator[int] | None = None) -> None:
        self.nodes: list[ir.Node] = []
        self._made: dict[str, ir.Value] = {}
        self._graph, self._prefix = graph, prefix
        self._numbers = count() if numbers is None else numbers

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.several(op_type, 1, *inputs, **attributes)[0]

    def several(
        self, op_type: str, outputs: int, *inputs: Operand, domain: str = "", **attributes: object
    ) -> Sequence[ir.Value]:
        """Make a node of operator `op_type` and return its `outputs` values."""
        values = [self._value(operand) for operand in inputs]
        name = f"{self._prefix}/{op_type}_{next(self._numbers)}"
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]  # type: ignore[arg-type]
        node = ir.Node(domain, op_type, values, attrs, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}_{index}"
        self.nodes.append(node)
        return node.outputs

    def choose(
        self,
        condition: ir.Value,
        then: Callable[["Ops"], Sequence[ir.Value]],
        otherwise: Callable[["Ops"], Sequence[ir.Value]],
        types: Sequence[ir.DataType],
    ) -> Sequence[ir.Value]:
        """Make an If and return its outputs, of element types `types`; each branch makes its own nodes."""
        branches: dict[str, object] = {
            "then_branch": self._branch("then", then, types),
            "else_branch": self._branch("else", otherwise, types),
        }
        outputs = self.several("If", len(types), condition, domain="", **branches)
        for value, kind in zip(outputs, types, strict=True):
            value.type = ir.TensorType(kind)
        return outputs

    def _branch(self, name: str, make: Callable[["Ops"], Sequence[ir.Value]], types: Sequence[ir.DataType]) -> ir.Graph:
        inner = Ops(self._graph, f"{self._prefix}/{name}", self._numbers)
        outputs = [v if v.producer() in inner.nodes else inner.Identity(v) for v in make(inner)]
        for value, kind in zip(outputs, types, strict=True):
            value.type = ir.TensorType(kind)
        return ir.Graph([], outputs, nodes=inner.nodes, name=f"{self._prefix}/{name}")

    def _value(self, operand: Operand) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        array = np.asarray(operand, np.float32 if isinstance(operand, float) else np.int64)
        return self.constant("_".join(map(str, np.atleast_1d(array))), array)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Return the constant `array` of the graph; the same `name`, type and rank must mean the same."""
        full = f"reduction/{array.dtype}_{array.ndim}d_{name}"
        if self._graph is not None:
            return add_initializer(self._graph, full, ir.tensor(array, name=full))
        if full not in self._made:
            self._made[full] = self.Constant(value=ir.tensor(array, name=full))
        return self._made[full]


def size(ops: Ops, x: ir.Value, axis: int) -> ir.Value:
    """Return the length of `x` along `axis`, int64 [1]."""
    return ops.Shape(x, start=axis, end=axis + 1)


def piece(ops: Ops, x: ir.Value, start: Operand, end: Operand, *, axis: int = 1, step: int = 1) -> ir.Value:
    """Return ``x[start:end:step]`` along `axis`; numbers count as vectors of one."""
    bounds = [[bound] if isinstance(bound, int) else bound for bound in (start, end)]
    return ops.Slice(x, bounds[0], bounds[1], [axis], [step])
