"""Generation does not ask which tokens a reduction kept.

Before: ``s, positions' = If(removes)`` at each reducing layer, the last positions an output.
After: the same without what only the output needs: attention behind a reduction still reads positions, scans do not.
"""

import onnx_ir as ir

from edgeslim.runtime.session import KEPT_POSITIONS


class DropKeptPositions(ir.passes.InPlacePass):
    """Remove the output `kept_positions`, and what nobody else reads of what leads to it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        output = next((v for v in model.graph.outputs if v.name == KEPT_POSITIONS), None)
        if output is None:
            return ir.passes.PassResult(model, False)
        model.graph.outputs.remove(output)
        for node in reversed(list(model.graph)):
            if node.op_type == "If":
                _drop_last_output(node)
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, True)


def _drop_last_output(node: ir.Node) -> None:
    """Remove the last output of an If, and of its branches, while nobody reads it; one output always stays."""
    while len(node.outputs) > 1 and not node.outputs[-1].uses() and not node.outputs[-1].is_graph_output():
        node.resize_outputs(len(node.outputs) - 1)
        for branch in ("then_branch", "else_branch"):
            graph = node.attributes[branch].as_graph()
            graph.outputs.pop()
            for inner in reversed(list(graph)):
                if not any(v.uses() or v.is_graph_output() for v in inner.outputs):
                    graph.remove(inner, safe=True)
