"""Attention by the operator of ours where it computes the same.

Before: ``o, k, v = com.microsoft::GroupQueryAttention(qkv, , , past_key, past_value, …)``, packed and in float32.
After: ``o, k, v = edgeslim::GroupQueryAttention(…)`` with the same inputs, whose function body is the node before.

Before: ``o, … = com.microsoft::GroupQueryAttention(q, k, v, …)``.
After: ``o, … = edgeslim::GroupQueryAttention(Concat(q, k, v), , , …)``, or qkv for what ``Split(qkv)`` made.

Before: ``o, … = com.microsoft::GroupQueryAttention(RotaryEmbedding(q, p, cos, sin), RotaryEmbedding(k, p, cos, sin), v,
…)``: rotated by the positions p of the tokens, not by places in the cache.
After: ``o, … = edgeslim::GroupQueryAttention(Concat(q, k, v), , , …, cos, sin, p)``.
"""

import onnx_ir as ir

from edgeslim.exporters.functions import (
    ATTENTION,
    ATTENTION_ATTRIBUTES,
    ATTENTION_INPUTS,
    DOMAIN,
    SOFTCAP,
    VERSION,
    attention_function,
)
from edgeslim.exporters.packed_nodes import sole_user
from edgeslim.exporters.passes.fuse_gate import remove_unread

_IGNORABLE = {"smooth_softmax": 0, "qk_output": 0, "kv_cache_bit_width": 0}
"""Attributes that must have these values, which mean that they are not used."""
_DEFAULTS = {"local_window_size": -1, "do_rotary": 0, "rotary_interleaved": 0}
_PARTS, _PAST_KEY, _POSITIONS = 3, ATTENTION_INPUTS.index("past_key"), ATTENTION_INPUTS.index("position_ids")
_QUERY_NORM = ATTENTION_INPUTS.index("query_norm")
_TURNED = "RotaryEmbedding"


class FuseAttention(ir.passes.InPlacePass):
    """Replace the GroupQueryAttention nodes that have no input or attribute beyond those of the operator of ours."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in [node for node in model.graph if node.op_type == ATTENTION and node.domain == "com.microsoft"]:
            tables = _turned_by(node)
            if tables is None and not _fits(node):
                continue
            if tables is not None:
                _take_rotation(model.graph, node, tables)
            _pack(model.graph, node)
            _replace(model, node)
            found = True
        return ir.passes.PassResult(model, found)


def _fits(node: ir.Node) -> bool:
    there = [v is not None for v in node.inputs]
    return not any(there[_POSITIONS:]) and there[1] == there[2] and _is_known(node)


def _is_known(node: ir.Node) -> bool:
    ours = (*ATTENTION_ATTRIBUTES, SOFTCAP)
    known = (name in ours or a.value == _IGNORABLE.get(name, a) for name, a in node.attributes.items())
    return len(node.outputs) <= len(("y", "present_key", "present_value")) and all(known)


def _turned_by(node: ir.Node) -> list[ir.Value] | None:
    """Return [cos, sin, positions] where queries and keys are rotated by them alike before `node`, else None."""
    rotates = node.attributes.get_int("do_rotary", 0) != 0
    if rotates or any(v is not None for v in node.inputs[7:]) or not _is_known(node):
        return None
    query, key, value = node.inputs[:_PARTS]
    rotations = [v.producer() if v is not None else None for v in (query, key)]
    heads = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads")]
    if value is None or not all(_rotates(turn, count) for turn, count in zip(rotations, heads, strict=True)):
        return None
    first, second = rotations
    assert first is not None and second is not None
    if list(first.inputs[1:]) != list(second.inputs[1:]) or any(sole_user(v) is not node for v in (query, key)):
        return None
    positions, cos, sin = first.inputs[1:4]
    return None if positions is None or cos is None or sin is None else [cos, sin, positions]


def _rotates(node: ir.Node | None, heads: int) -> bool:
    if node is None or node.op_type != _TURNED or node.domain != "com.microsoft" or len(node.inputs) != 4:
        return False
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    return values in ({"num_heads": heads, "interleaved": 0}, {"num_heads": heads})


def _take_rotation(graph: ir.Graph, node: ir.Node, given: list[ir.Value]) -> None:
    """Let `node` read queries and keys as they were before their rotation, and what it is done with."""
    turns = [v.producer() for v in node.inputs[:2] if v is not None]
    node.resize_inputs(_POSITIONS + 1)
    for index, value in enumerate(given, _POSITIONS - 2):
        node.replace_input_with(index, value)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    for index, turn in enumerate(turns):
        assert turn is not None
        node.replace_input_with(index, turn.inputs[0])
        remove_unread(graph, turn.outputs[0])


def _pack(graph: ir.Graph, node: ir.Node) -> None:
    """Let `node` read queries, keys and values as one value."""
    parts = [value for value in node.inputs[:_PARTS] if value is not None]
    if len(parts) < _PARTS:
        return
    split = parts[0].producer()
    if split is not None and split.op_type == "Split" and list(split.outputs) == parts:
        packed = split.inputs[0]
    else:
        packed = _concat(graph, node, parts)
    for index, value in enumerate([packed, None, None]):
        node.replace_input_with(index, value)
    remove_unread(graph, parts[0])


def _concat(graph: ir.Graph, node: ir.Node, parts: list[ir.Value]) -> ir.Value:
    concat = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", -1)], name=f"{node.name}_parts")
    packed, past = concat.outputs[0], node.inputs[_PAST_KEY]
    packed.name, packed.type = f"{parts[0].name}_with_key_and_value", parts[0].type
    if parts[0].shape is not None and past is not None and past.shape is not None and isinstance(past.shape[3], int):
        heads = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
        packed.shape = ir.Shape([*parts[0].shape[:-1], sum(heads) * past.shape[3]])
    graph.insert_before(node, concat)
    return packed


def _replace(model: ir.Model, node: ir.Node) -> None:
    node.domain = DOMAIN
    positions = len(node.inputs) > _POSITIONS and node.inputs[_POSITIONS] is not None
    node.resize_inputs(min(len(node.inputs), _POSITIONS + positions))
    kept = (*ATTENTION_ATTRIBUTES, *([SOFTCAP] if _is_capped(node) else []))
    for name in [name for name in node.attributes if name not in kept]:
        del node.attributes[name]
    for name, value in _DEFAULTS.items():
        node.attributes.setdefault(name, ir.AttrInt64(name, value))
    node.attributes.setdefault("scale", ir.AttrFloat32("scale", 0.0))
    give_body(model, node)
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)


def give_body(model: ir.Model, node: ir.Node) -> None:
    """Name the function body of `node`, an attention of ours, by the inputs and attributes that it has."""
    there = [value is not None for value in node.inputs]
    function = attention_function(
        positions=any(there[_POSITIONS:_QUERY_NORM]), norms=any(there[_QUERY_NORM:]), capped=_is_capped(node)
    )
    node.overload = function.overload
    model.functions.setdefault(function.identifier(), function)


def _is_capped(node: ir.Node) -> bool:
    return node.attributes.get_float(SOFTCAP, 0.0) != 0
