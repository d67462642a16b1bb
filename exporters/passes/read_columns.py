"""A product reads its columns in place.

Before: ``a, b = Split(v)``; ``y = PackedLinear(a)``.
After: ``y = PackedLinear(v, x_start=0)``; the Split goes where nobody else reads it.
"""

import onnx_ir as ir

from edgeslim.exporters.packed_nodes import linear_nodes, operand, set_operand
from edgeslim.exporters.passes.fuse_causal_conv import columns_of
from edgeslim.exporters.passes.fuse_gate import remove_unread


class ReadColumns(ir.passes.InPlacePass):
    """Let PackedLinear nodes read the parts of a Split from what was split."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in linear_nodes(model.graph):
            x = operand(node, "x")
            source, start = columns_of(x) if x is not None else (None, 0)
            if x is None or source is None or source is x:
                continue
            set_operand(node, "x", source)
            node.attributes["x_start"] = ir.AttrInt64("x_start", start)
            remove_unread(model.graph, x)
            found = True
        return ir.passes.PassResult(model, found)
