"""Mamba-2's gated norm taken over each group of channels on its own.

Before: ``y = RMSNormalization(x, w)`` over all D channels: right for one group only, and what mobius builds.
After: ``y = Reshape(RMSNormalization(Reshape(x, [0, 0, G, D/G]), 1), [0, 0, D]) * w``.

Letters: B batch, T tokens, D inner channels, G groups.
"""

import numpy as np
import onnx_ir as ir

_SUFFIX = ".mixer.norm.weight"


class GroupedNorms(ir.passes.InPlacePass):
    """Split the gated norms of Mamba-2 mixers into `groups` groups; one group changes nothing."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if self.groups > 1 and _is_gated_norm(node)]
        for node in norms:
            _split(model.graph, node, self.groups)
        return ir.passes.PassResult(model, bool(norms))


def _is_gated_norm(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "RMSNormalization" else None
    return weight is not None and (weight.name or "").endswith(_SUFFIX)


def _split(graph: ir.Graph, node: ir.Node, groups: int) -> None:
    source, weight = node.inputs[:2]
    assert source is not None and weight is not None and weight.shape is not None and node.name is not None
    width = weight.shape.numpy()[0] // groups
    apart = _node(
        "Reshape", [source, _constant(graph, f"grouped_{groups}x{width}", [0, 0, groups, width])], node, "apart"
    )
    ones = _constant(graph, f"ones_{width}", np.ones(width, np.float32))
    attributes = {name: attribute for name, attribute in node.attributes.items() if name != "axis"}
    norm = _node("RMSNormalization", [apart.outputs[0], ones], node, "grouped", list(attributes.values()))
    whole = _constant(graph, f"whole_{groups * width}", [0, 0, groups * width])
    joined = _node("Reshape", [norm.outputs[0], whole], node, "joined")
    graph.insert_before(node, [apart, norm, joined])
    # The node itself becomes the product, so that its output keeps name, type and users.
    node.op_type, node.domain = "Mul", ""
    node.replace_input_with(0, joined.outputs[0])
    node.attributes.clear()


def _node(
    op: str, inputs: list[ir.Value], base: ir.Node, part: str, attributes: list[ir.Attr] | None = None
) -> ir.Node:
    node = ir.Node("", op, inputs, attributes or [], name=f"{base.name}_{part}")
    node.outputs[0].name = f"{base.outputs[0].name}_{part}"
    node.outputs[0].type = base.outputs[0].type
    return node


def _constant(graph: ir.Graph, name: str, content: list[int] | np.ndarray) -> ir.Value:
    """Return the initializer `name` of `graph`, made from `content` where it is not there yet."""
    if name not in graph.initializers:
        array = np.asarray(content) if isinstance(content, np.ndarray) else np.asarray(content, np.int64)
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
