"""Where in a graph a block's branch and its residual meet: between these a step stands.

A graph from mobius, or from a module of ours, before any lowering: a mixer (scan or attention) gives a layer's present
state, a product with constants follows, and its result meets the residual in a sum, of which a norm may be part.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgeslim.errors import ExportError
from edgeslim.exporters.passes.split_skip_norms import split_skip_norm

SCAN, ATTENTION = "LinearAttention", "GroupQueryAttention"
_SKIP_NORM = "SkipSimplifiedLayerNormalization"
_STATES = ("recurrent_state", "key")
_BIAS = 3  # which input of SkipSimplifiedLayerNormalization is added too


@dataclass(frozen=True, kw_only=True)
class Place:
    """A block's meeting point: the Add `total` sums `branch` and `residual`, both [B, N, H]; `y` [B, N, D] is what the
    mixer makes of the tokens, before gate, norm and the last product."""

    layer: int
    mixer: ir.Node
    y: ir.Value
    branch: ir.Value
    residual: ir.Value
    total: ir.Node


def mixer_of(graph: ir.Graph, layer: int) -> ir.Node:
    """Return the node of scan or attention of `layer`.

    Raises: ExportError where there is none.
    """
    names = {f"present.{layer}.{state}" for state in _STATES}
    node = next((v.producer() for v in graph.outputs if v.name in names), None)
    if node is None or node.op_type not in (SCAN, ATTENTION):
        raise ExportError(f"tokens cannot be reduced at layer {layer}: it has neither scan nor attention")
    return node


def find_place(graph: ir.Graph, layer: int) -> Place:
    """Return the meeting point of block `layer`, where sum and norm are made apart.

    Raises: ExportError where the graph is built otherwise.
    """
    mixer = mixer_of(graph, layer)
    y = mixer.outputs[0] if mixer.op_type == ATTENTION else _skipped(mixer)
    product = next((node for node in _after(graph, y) if _is_product(node)), None)
    branch = None if product is None else _with_bias(product.outputs[0])
    total = None if branch is None else _sum_of(graph, branch)
    if branch is None or total is None:
        raise ExportError(f"tokens cannot be reduced at layer {layer}: no sum of branch and residual was found")
    residual = total.inputs[1] if total.inputs[0] is branch else total.inputs[0]
    assert residual is not None
    return Place(layer=layer, mixer=mixer, y=y, branch=branch, residual=residual, total=total)


def _sum_of(graph: ir.Graph, branch: ir.Value) -> ir.Node | None:
    """Return the Add of `branch` and a residual; one that is part of a norm is made a node of its own."""
    for use in branch.uses():
        if use.node.op_type == "Add":
            return use.node
        if use.node.op_type == _SKIP_NORM and all(value is None for value in use.node.inputs[_BIAS:]):
            return split_skip_norm(graph, use.node)
    return None


def _skipped(scan: ir.Node) -> ir.Value:
    """Return the scan's output with D x added."""
    total = next((use.node for use in scan.outputs[0].uses() if use.node.op_type == "Add"), None)
    if total is None:
        raise ExportError(f"tokens cannot be reduced: nothing is added to the scan {scan.name}")
    return total.outputs[0]


def _after(graph: ir.Graph, value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that depend on `value`, in order."""
    reached = {value}
    for node in graph:
        if not reached.isdisjoint(v for v in node.inputs if v is not None):
            reached.update(node.outputs)
            yield node


def _is_product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].is_initializer()


def _with_bias(product: ir.Value) -> ir.Value:
    for use in product.uses():
        if use.node.op_type == "Add" and any(v is not None and v.is_initializer() for v in use.node.inputs):
            return use.node.outputs[0]
    return product
