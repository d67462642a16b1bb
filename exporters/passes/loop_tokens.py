"""The recurrence of Mamba-1 as a loop over tokens, for onnxruntime without a library of ours.

Before: ``com.microsoft::LinearAttention`` with a head a channel, and what is around it, see FuseSelectiveScan.
After: ``Scan`` over the tokens, in the nodes of SelectiveScan's function body: a half to a quarter of the time.
"""

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgeslim.exporters.functions import DOMAIN
from edgeslim.exporters.passes.fuse_selective_scan import FuseSelectiveScan


class LoopTokens(ir.passes.InPlacePass):
    """Replace the LinearAttention nodes of Mamba-1 mixers by loops of standard operators."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = FuseSelectiveScan()(model).modified
        if found:
            for function in model.functions.values():  # its operators are the same in every opset since
                function.opset_imports[""] = max(function.opset_imports[""], model.graph.opset_imports[""])
            InlinePass()(model)
            model.graph.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, found)
