"""A causal convolution that reads its columns in place, tokens before channels.

Before: ``c = Split(v)[i]``; ``m, s = com.microsoft::CausalConvWithState(Transpose(c), w, b, past)``;
``y = Transpose(m)``.
After: ``y, s = edgeslim::CausalConv(v, w, b, past)``, whose function body is the nodes before.

Letters: C channels, K taps.
"""

import onnx_ir as ir

from edgeslim.exporters.functions import CONV, DOMAIN, VERSION, conv_function
from edgeslim.exporters.packed_nodes import sole_user
from edgeslim.exporters.passes.fuse_gate import remove_unread

_MOST_TAPS = 16  # that the kernel takes
_ACTIVATIONS = ("silu", "none")
_PERM = (0, 2, 1)


class FuseCausalConv(ir.passes.InPlacePass):
    """Replace CausalConvWithState nodes that stand between two transpositions, and these."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if n.op_type == "CausalConvWithState" and n.domain == "com.microsoft"]
        fitting = [node for node in nodes if _fits(node)]
        for node in fitting:
            _replace(model, node)
        return ir.passes.PassResult(model, bool(fitting))


def columns_of(value: ir.Value) -> tuple[ir.Value, int]:
    """Return (v, start) where `value` is the columns of v from `start` on: part of a Split, or v itself."""
    node = value.producer()
    sizes = constant(node.inputs[1]) if node is not None and node.op_type == "Split" and len(node.inputs) > 1 else None
    if node is None or sizes is None or not is_last_axis(node) or (source := node.inputs[0]) is None:
        return value, 0
    return source, sum(sizes[: value.index() or 0])


def is_last_axis(node: ir.Node) -> bool:
    """Return whether the attribute `axis` of `node`, 0 where it is absent, names the last axis of its input."""
    axis, source = node.attributes.get_int("axis", 0), node.inputs[0]
    return axis == -1 or (source is not None and source.shape is not None and axis == source.shape.rank() - 1)


def constant(value: ir.Value | None) -> list[int] | None:
    """Return the integers of a constant of one dimension, None where `value` is none."""
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.shape.rank() != 1:
        return None
    return [int(i) for i in tensor.numpy()]


def _fits(node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    after = sole_user(node.outputs[0])
    if not _is_turn(before) or not _is_turn(after) or sole_user(node.inputs[0]) is not node:
        return False
    given = [v for v in node.inputs if v is not None]
    if len(node.inputs) != 4 or node.inputs[1] is None or node.inputs[3] is None or len(node.outputs) != 2:
        return False
    known = set(node.attributes) <= {"activation", "ndim"} and node.attributes.get_int("ndim", 1) == 1
    activation = node.attributes.get_string("activation", "none")
    floats = all(v.dtype in (None, ir.DataType.FLOAT) for v in given)
    return known and activation in _ACTIVATIONS and floats and _is_taps(node.inputs[1])


def _is_turn(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == _PERM


def _is_taps(weight: ir.Value) -> bool:
    shape = weight.shape
    if weight.const_value is None or shape is None or shape.rank() != 3 or not shape.is_static():
        return False
    return shape[1] == 1 and 1 <= shape.numpy()[2] <= _MOST_TAPS


def _replace(model: ir.Model, node: ir.Node) -> None:
    turned, after = node.inputs[0], sole_user(node.outputs[0])
    assert turned is not None and after is not None
    before = turned.producer()
    assert before is not None and before.inputs[0] is not None
    source, start = columns_of(before.inputs[0])
    attributes = [
        ir.AttrInt64("x_start", start),
        ir.AttrString("activation", node.attributes.get_string("activation", "none")),
    ]
    new = ir.Node(DOMAIN, CONV, [source, *node.inputs[1:]], attributes, num_outputs=2, name=node.name)
    use_function(model, conv_function())
    put(model.graph, new, at=node, instead_of=[after.outputs[0], node.outputs[1]])
    remove_unread(model.graph, after.outputs[0])


def use_function(model: ir.Model, function: ir.Function) -> None:
    """Let nodes of `model` be of the operator whose body is `function`."""
    model.functions.setdefault(function.identifier(), function)
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)
    model.graph.opset_imports.setdefault("com.microsoft", 1)


def put(graph: ir.Graph, new: ir.Node, *, at: ir.Node, instead_of: list[ir.Value]) -> None:
    """Insert `new` before `at`; its outputs take over names and users of `instead_of`."""
    graph.insert_before(at, new)
    for old, output in zip(instead_of, new.outputs, strict=True):
        output.name, output.shape, output.type = old.name, old.shape, old.type
        old.name = f"{old.name}_before"
        old.replace_all_uses_with(output, replace_graph_outputs=True)
