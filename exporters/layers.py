"""The linears of a graph: their names, how many of their weights are zero, what they take on disk."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeslim.runtime.manifest import Layer

_STOCK = {"MatMul", "FusedMatMul", "MatMulNBits"}


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A matrix product with constant weights: `name` as in the checkpoint, shape [outputs N, inputs K]."""

    name: str
    shape: tuple[int, int]
    sparsity: float


def linears(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of `graph` that multiply by a constant matrix."""
    for node in graph:
        right = node.inputs[1] if node.op_type in _STOCK and len(node.inputs) > 1 else None
        if right is not None and right.is_initializer():
            yield node


def measure_layers(graph: ir.Graph) -> dict[str, Linear]:
    """Return the linears of a graph whose weights are not yet packed, by node name. Reads one matrix at a time."""
    return {node.name or "": _measure(node) for node in linears(graph)}


def layer_bytes(
    graph: ir.Graph, measured: Mapping[str, Linear], form: str | Callable[[ir.Node], str]
) -> tuple[Layer, ...]:
    """Return manifest entries for the `measured` linears with the bytes their nodes' constants take in `graph`, and
    their form: one for all, or what it says of each node."""
    nodes = {node.name: node for node in linears(graph)}
    return tuple(
        Layer(
            name=linear.name,
            shape=linear.shape,
            sparsity=linear.sparsity,
            bytes=sum(_constant_bytes(value) for value in nodes[name].inputs[1:]),
            form=form if isinstance(form, str) else form(nodes[name]),
        )
        for name, linear in measured.items()
        if name in nodes
    )


def layer_name(weight: str) -> str:
    """Return the checkpoint's name of a linear from its initializer's, packed ones joined.

    `a.b.q_proj.weight_t__a.b.k_proj.weight_t__axis_1__concat` becomes `a.b.q_proj+k_proj`.
    """
    parts = [part.removesuffix("_t").removesuffix(".weight") for part in weight.split("__") if ".weight" in part]
    if not parts:
        return weight
    prefix = parts[0].rpartition(".")[0]
    tails = [part.rpartition(".")[2] for part in parts]
    return f"{prefix}.{'+'.join(tails)}" if prefix else "+".join(tails)


def _measure(node: ir.Node) -> Linear:
    right = node.inputs[1]
    assert right is not None and right.const_value is not None
    array = right.const_value.numpy()
    transposed = node.attributes.get_int("transB", 0)
    rows, columns = array.shape if transposed else array.shape[::-1]
    zeros = 1 - np.count_nonzero(array) / max(array.size, 1)
    return Linear(name=layer_name(right.name or ""), shape=(rows, columns), sparsity=round(float(zeros), 6))


def _constant_bytes(value: ir.Value | None) -> int:
    return value.const_value.nbytes if value is not None and value.const_value is not None else 0
