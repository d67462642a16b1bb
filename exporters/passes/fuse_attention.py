"""Attention by the operator of ours where it computes the same.

Before: ``o, k, v = com.microsoft::GroupQueryAttention(qkv, , , past_key, past_value, …)``, packed and in float32.
After: ``o, k, v = edgeslim::GroupQueryAttention(…)`` with the same inputs, whose function body is the node before.

Before: ``q, k, v = Split(qkv)``; ``o, … = com.microsoft::GroupQueryAttention(RotaryEmbedding(q, p, cos, sin),
RotaryEmbedding(k, p, cos, sin), v, …)``: rotated by the positions p of the tokens, not by places in the cache.
After: ``o, … = edgeslim::GroupQueryAttention(qkv, , , …, cos, sin, p)``.
"""

import onnx_ir as ir

from edgeslim.exporters.functions import ATTENTION, ATTENTION_ATTRIBUTES, ATTENTION_INPUTS, DOMAIN, attention_function
from edgeslim.exporters.packed_nodes import sole_user
from edgeslim.exporters.passes.fuse_gate import remove_unread

_IGNORABLE = {"softcap": 0.0, "smooth_softmax": 0, "qk_output": 0, "kv_cache_bit_width": 0}
"""Attributes that must have these values, which mean that they are not used."""
_DEFAULTS = {"local_window_size": -1, "do_rotary": 0, "rotary_interleaved": 0}
_PLAIN = len(ATTENTION_INPUTS) - 1  # inputs without position_ids
_TURNED = "RotaryEmbedding"


class FuseAttention(ir.passes.InPlacePass):
    """Replace the GroupQueryAttention nodes that have no input or attribute beyond those of the operator of ours."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in [node for node in model.graph if node.op_type == ATTENTION and node.domain == "com.microsoft"]:
            turned = _turned(node)
            if turned is not None:
                _take_rotation(model.graph, node, *turned)
            if turned is not None or _fits(node):
                _replace(model, node)
                found = True
        return ir.passes.PassResult(model, found)


def _fits(node: ir.Node) -> bool:
    return not any(v is not None for v in [*node.inputs[1:3], *node.inputs[_PLAIN:]]) and _is_known(node)


def _is_known(node: ir.Node) -> bool:
    known = (name in ATTENTION_ATTRIBUTES or a.value == _IGNORABLE.get(name, a) for name, a in node.attributes.items())
    return len(node.outputs) <= len(("y", "present_key", "present_value")) and all(known)


def _turned(node: ir.Node) -> tuple[ir.Value, list[ir.Value]] | None:
    """Return (qkv, [cos, sin, positions]) where queries and keys are rotated parts of one value, else None."""
    rotates = node.attributes.get_int("do_rotary", 0) != 0
    if rotates or any(v is not None for v in node.inputs[7:]) or not _is_known(node):
        return None
    query, key, value = node.inputs[:3]
    rotations = [v.producer() if v is not None else None for v in (query, key)]
    heads = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads")]
    if value is None or not all(_rotates(turn, count) for turn, count in zip(rotations, heads, strict=True)):
        return None
    first, second = rotations
    assert first is not None and second is not None
    split = value.producer()
    parts = [first.inputs[0], second.inputs[0], value]
    if split is None or split.op_type != "Split" or list(split.outputs) != parts:
        return None
    if list(first.inputs[1:]) != list(second.inputs[1:]) or split.inputs[0] is None:
        return None
    positions, cos, sin = first.inputs[1:4]
    if positions is None or cos is None or sin is None or any(sole_user(v) is not node for v in (query, key, value)):
        return None
    return split.inputs[0], [cos, sin, positions]


def _rotates(node: ir.Node | None, heads: int) -> bool:
    if node is None or node.op_type != _TURNED or node.domain != "com.microsoft" or len(node.inputs) != 4:
        return False
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    return values in ({"num_heads": heads, "interleaved": 0}, {"num_heads": heads})


def _take_rotation(graph: ir.Graph, node: ir.Node, qkv: ir.Value, given: list[ir.Value]) -> None:
    """Let `node` read `qkv`, tables and positions instead of rotated parts."""
    before = [v for v in node.inputs[:2] if v is not None]
    node.resize_inputs(len(ATTENTION_INPUTS))
    for index, value in enumerate([qkv, None, None]):
        node.replace_input_with(index, value)
    for index, value in enumerate(given, _PLAIN - 2):
        node.replace_input_with(index, value)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    for value in before:
        remove_unread(graph, value)


def _replace(model: ir.Model, node: ir.Node) -> None:
    node.domain = DOMAIN
    positions = len(node.inputs) > _PLAIN and node.inputs[_PLAIN] is not None
    node.resize_inputs(min(len(node.inputs), len(ATTENTION_INPUTS) if positions else _PLAIN))
    for name in [name for name in node.attributes if name not in ATTENTION_ATTRIBUTES]:
        del node.attributes[name]
    for name, value in _DEFAULTS.items():
        node.attributes.setdefault(name, ir.AttrInt64(name, value))
    node.attributes.setdefault("scale", ir.AttrFloat32("scale", 0.0))
    function = attention_function(positions=positions)
    node.overload = function.overload
    model.functions.setdefault(function.identifier(), function)
    model.graph.opset_imports.setdefault(DOMAIN, 1)
