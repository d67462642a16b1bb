"""Attention by the operator of ours where it computes the same.

Before: ``o, k, v = com.microsoft::GroupQueryAttention(qkv, , , past_key, past_value, …)``, packed and in float32.
After: ``o, k, v = edgeslim::GroupQueryAttention(…)`` with the same inputs, whose function body is the node before.
"""

import onnx_ir as ir

from edgeslim.exporters.functions import ATTENTION, ATTENTION_ATTRIBUTES, ATTENTION_INPUTS, DOMAIN, attention_function

_IGNORABLE = {"softcap": 0.0, "smooth_softmax": 0, "qk_output": 0, "kv_cache_bit_width": 0}
"""Attributes that must have these values, which mean that they are not used."""
_DEFAULTS = {"local_window_size": -1, "do_rotary": 0, "rotary_interleaved": 0}


class FuseAttention(ir.passes.InPlacePass):
    """Replace the GroupQueryAttention nodes that have no input or attribute beyond those of the operator of ours."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == ATTENTION and node.domain == "com.microsoft"]
        fitting = [node for node in nodes if _fits(node)]
        for node in fitting:
            _replace(model, node)
        return ir.passes.PassResult(model, bool(fitting))


def _fits(node: ir.Node) -> bool:
    absent = [*node.inputs[1:3], *node.inputs[len(ATTENTION_INPUTS) :]]
    if any(value is not None for value in absent) or len(node.outputs) > 3:
        return False
    return all(_is_known(name, attribute) for name, attribute in node.attributes.items())


def _is_known(name: str, attribute: ir.Attr) -> bool:
    return name in ATTENTION_ATTRIBUTES or attribute.value == _IGNORABLE.get(name, attribute)


def _replace(model: ir.Model, node: ir.Node) -> None:
    node.domain = DOMAIN
    node.resize_inputs(min(len(node.inputs), len(ATTENTION_INPUTS)))
    for name in [name for name in node.attributes if name not in ATTENTION_ATTRIBUTES]:
        del node.attributes[name]
    for name, value in _DEFAULTS.items():
        node.attributes.setdefault(name, ir.AttrInt64(name, value))
    node.attributes.setdefault("scale", ir.AttrFloat32("scale", 0.0))
    function = attention_function()
    model.functions.setdefault(function.identifier(), function)
    model.graph.opset_imports.setdefault(DOMAIN, 1)
