"""Nodes of PackedLinear and PackedGather while a graph is being lowered: their operands by name, their matrix to be.

A node is made without its packed tensors and carries its matrix as metadata, so that passes may join matrices and move
operands; the pass `StorePacked` packs last.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.exporters.functions import DOMAIN, GATHER, GATHER_INPUTS, LINEAR, LINEAR_INPUTS
from edgeslim.exporters.packing import F32

_MATRIX = "edgeslim.matrix"
_INPUTS = {LINEAR: LINEAR_INPUTS, GATHER: GATHER_INPUTS}


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """A constant matrix [n, k] of the graph: `dense` reads it, as float32; `names` are those of its weights in the
    checkpoint, several where matrices were joined."""

    names: tuple[str, ...]
    n: int
    k: int
    dense: Callable[[], F32]

    @property
    def name(self) -> str:
        """The names in one, with a common path said once: `a.b.gate_proj+up_proj`."""
        paths = {name.rpartition(".")[0] for name in self.names}
        if len(self.names) == 1 or len(paths) > 1:
            return "+".join(self.names)
        tails = [name.rpartition(".")[2] for name in self.names]
        return f"{paths.pop()}.{'+'.join(tails)}".lstrip(".")


def joined(parts: list[Matrix]) -> Matrix:
    """Return the matrix that stacks the outputs of `parts`."""
    return Matrix(
        names=tuple(name for part in parts for name in part.names),
        n=sum(part.n for part in parts),
        k=parts[0].k,
        dense=lambda: np.concatenate([part.dense() for part in parts]),
    )


def packed_linear(x: ir.Value, matrix: Matrix, output: ir.Value, name: str | None) -> ir.Node:
    """Return a PackedLinear node that is to compute `output` from `x` and `matrix`."""
    return _node(LINEAR, x, matrix, output, name)


def packed_gather(ids: ir.Value, matrix: Matrix, output: ir.Value, name: str | None) -> ir.Node:
    """Return a PackedGather node that is to compute `output`, rows `ids` of `matrix`."""
    return _node(GATHER, ids, matrix, output, name)


def _node(op: str, first: ir.Value, matrix: Matrix, output: ir.Value, name: str | None) -> ir.Node:
    inputs = [first, *[None] * (len(_INPUTS[op]) - 1)]
    node = ir.Node(
        DOMAIN, op, inputs, outputs=[ir.Value(name=output.name, shape=output.shape, type=output.type)], name=name
    )
    node.meta[_MATRIX] = matrix
    return node


def is_linear(node: ir.Node | None) -> bool:
    """Return whether `node` is a PackedLinear."""
    return node is not None and node.op_type == LINEAR and node.domain == DOMAIN


def is_gather(node: ir.Node | None) -> bool:
    """Return whether `node` is a PackedGather."""
    return node is not None and node.op_type == GATHER and node.domain == DOMAIN


def linear_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the PackedLinear nodes of `graph`; it may be changed meanwhile."""
    yield from [node for node in graph if is_linear(node)]


def matrix_of(node: ir.Node) -> Matrix:
    """Return the matrix of a node that is not stored yet."""
    matrix: Matrix = node.meta[_MATRIX]
    return matrix


def operand(node: ir.Node, name: str) -> ir.Value | None:
    """Return the operand `name` of a PackedLinear or PackedGather node, None where it has none."""
    index = _INPUTS[node.op_type].index(name)
    return node.inputs[index] if index < len(node.inputs) else None


def set_operand(node: ir.Node, name: str, value: ir.Value | None) -> None:
    """Set the operand `name` of a PackedLinear or PackedGather node."""
    node.replace_input_with(_INPUTS[node.op_type].index(name), value)


def operands(node: ir.Node) -> frozenset[str]:
    """Return the names of the operands that the node has."""
    return frozenset(name for name, value in zip(_INPUTS[node.op_type], node.inputs, strict=False) if value is not None)


def joins_columns(node: ir.Node) -> bool:
    """Return whether `node` puts the columns of its inputs side by side."""
    if node.op_type != "Concat" or node.domain:
        return False
    axis, shape = node.attributes.get_int("axis", 0), node.outputs[0].shape
    return axis == -1 or (shape is not None and axis == shape.rank() - 1)


def sole_user(value: ir.Value | None) -> ir.Node | None:
    """Return the node that alone reads `value` (once), None where there is none, several, or it is an output."""
    if value is None or value.is_graph_output():
        return None
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put `new` where `old` stands; the first output of `new` takes over from that of `old`, name and users."""
    graph.insert_before(old, new)
    source, target = old.outputs[0], new.outputs[0]
    target.name, target.shape, target.type = source.name, source.shape, source.type
    source.replace_all_uses_with(target, replace_graph_outputs=True)
    graph.remove(old, safe=True)
