"""Norms of queries and keys move into the attention that reads them.

Before: ``o, … = edgeslim::GroupQueryAttention(Concat(n(q, Q), n(k, K), v), , , …)``, where n is a norm of each head,
``Reshape(RMSNormalization(Reshape(q, [0, 0, -1, D]), Q), [0, 0, -1])``, or of all heads of a token,
``RMSNormalization(q, Q)``.
After: ``o, … = edgeslim::GroupQueryAttention(Concat(q, k, v), , , …, query_norm=Q, key_norm=K)``.

Letters: D size of a head.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeslim.exporters.functions import ATTENTION, ATTENTION_INPUTS, DOMAIN, NORM_EPSILON
from edgeslim.exporters.packed_nodes import joins_columns, sole_user
from edgeslim.exporters.passes.fuse_attention import give_body
from edgeslim.exporters.passes.fuse_gate import remove_unread
from edgeslim.exporters.passes.fuse_norm import plain_norm

_PAST_KEY, _QUERY_NORM = (ATTENTION_INPUTS.index(n) for n in ("past_key", "query_norm"))
_HEADS = ("num_heads", "kv_num_heads")


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """What is normed, by which weights, and the epsilon."""

    source: ir.Value
    weight: ir.Value
    epsilon: float


class FuseQueryNorms(ir.passes.InPlacePass):
    """Fuse the norms of both queries and keys into GroupQueryAttention nodes of ours that alone read them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = False
        for node in [node for node in model.graph if node.op_type == ATTENTION and node.domain == DOMAIN]:
            norms = _norms(node)
            if norms:
                _fuse(model, node, norms)
                found = True
        return ir.passes.PassResult(model, found)


def _norms(node: ir.Node) -> list[_Norm]:
    """Return the norms of queries and of keys where `node` can take them, else nothing."""
    qkv, past = node.inputs[0], node.inputs[_PAST_KEY]
    concat = qkv.producer() if qkv is not None else None
    size = past.shape[3] if past is not None and past.shape is not None else None
    if concat is None or not joins_columns(concat) or len(concat.inputs) != 3 or sole_user(qkv) is not node:
        return []
    if not isinstance(size, int):
        return []
    values = zip(concat.inputs, _HEADS, strict=False)
    found = [_norm_before(v, concat, node.attributes.get_int(heads, 0) * size, size) for v, heads in values]
    norms = [norm for norm in found if norm is not None]
    return norms if len(norms) == len(_HEADS) and len({norm.epsilon for norm in norms}) == 1 else []


def _norm_before(value: ir.Value | None, user: ir.Node, width: int, size: int) -> _Norm | None:
    """Return the norm that makes `value` [B, T, width] for `user` alone, of heads of `size` or of all, else None."""
    back = value.producer() if value is not None and sole_user(value) is user else None
    if back is None or back.op_type != "Reshape":
        return _norm_of(back, width)
    apart = _shaped(back, ([0, 0, -1], [0, 0, width]))
    node = apart.producer() if apart is not None and sole_user(apart) is back else None
    norm = _norm_of(node, size)
    split = norm.source.producer() if norm is not None and sole_user(norm.source) is node else None
    source = _shaped(split, ([0, 0, -1, size], [0, 0, width // size, size]))
    return None if norm is None or source is None else replace(norm, source=source)


def _norm_of(node: ir.Node | None, size: int) -> _Norm | None:
    if node is None or plain_norm(node) != [size]:
        return None
    source, weight = node.inputs[:2]
    assert source is not None and weight is not None
    return _Norm(source=source, weight=weight, epsilon=node.attributes.get_float("epsilon", 1e-5))


def _shaped(node: ir.Node | None, shapes: tuple[list[int], ...]) -> ir.Value | None:
    """Return what `node` reshapes into one of `shapes`, else None."""
    if node is None or node.op_type != "Reshape" or node.attributes.get_int("allowzero", 0) != 0:
        return None
    shape = node.inputs[1].const_value if node.inputs[1] is not None else None
    return node.inputs[0] if shape is not None and shape.numpy().tolist() in shapes else None


def _fuse(model: ir.Model, node: ir.Node, norms: list[_Norm]) -> None:
    assert node.inputs[0] is not None
    concat = node.inputs[0].producer()
    assert concat is not None
    node.resize_inputs(len(ATTENTION_INPUTS))
    for index, norm in enumerate(norms):
        normed = concat.inputs[index]
        assert normed is not None
        node.replace_input_with(_QUERY_NORM + index, norm.weight)
        concat.replace_input_with(index, norm.source)
        remove_unread(model.graph, normed)
    node.attributes[NORM_EPSILON] = ir.AttrFloat32(NORM_EPSILON, norms[0].epsilon)
    give_body(model, node)
