"""Recurrent states under the names that onnxruntime-genai looks for.

Before: inputs ``past_states.0.conv_state``, ``past_states.0.ssm_state``; outputs ``present.0.conv_state``,
``present.0.ssm_state``.
After: inputs ``past_key_values.0.conv_state``, ``past_key_values.0.recurrent_state``; outputs
``present.0.conv_state``, ``present.0.recurrent_state``.
"""

import re

import onnx_ir as ir

_STATE = re.compile(r"(?:past_states|past_key_values|(present))\.(\d+)\.(conv_state|ssm_state|recurrent_state)")


class RecurrentNames(ir.passes.InPlacePass):
    """Rename the recurrent states of `model`; key-value caches keep their names."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in (*model.graph.inputs, *model.graph.outputs):
            name = genai_name(value.name or "")
            modified |= name != value.name
            value.name = name
        return ir.passes.PassResult(model, modified)


def genai_name(name: str) -> str:
    """Return the name that onnxruntime-genai gives the state called `name`; any other name comes back unchanged."""
    match = _STATE.fullmatch(name)
    if match is None:
        return name
    present, layer, kind = match.groups()
    return f"{present or 'past_key_values'}.{layer}.{kind.replace('ssm', 'recurrent')}"
