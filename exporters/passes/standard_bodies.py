"""What operators that are not basic ones compute, in operators that every parser of ONNX's own domain knows.

A body is text: one line a node, in the syntax of onnx.parser, for opset 17. `standard_operators.py` puts them in place.

Letters: B batch, T tokens, P tokens in the state, S = P + T, H heads, K key-value heads, D size of a head, N size of a
recurrent state, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeslim.errors import ExportError

OPSET = 17
"""The lowest that has what the bodies use: TensorRT 8.5 (JetPack 5) reads it, and so does every later one."""
LOWEST = -65504.0
"""Stands for minus infinity in scores: the lowest number of half precision."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """Nodes that compute `outputs` of `inputs`; absent optional inputs are left out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lines: tuple[str, ...]


def rms_norm(node: ir.Node) -> Body:
    """y = x / sqrt(mean x² + ε) · w. Pow and ReduceMean, since TensorRT's provider can keep these two in float32."""
    _require_last_axis(node)
    lines = (*_rms_lines("x", node.attributes.get_float("epsilon", 1e-5)), "y = Mul(normed, w)")
    return Body(inputs=("x", "w"), outputs=("y",), lines=lines)


def layer_norm(node: ir.Node) -> Body:
    """y = (x - mean x) / sqrt(var x + ε) · w + b."""
    _require_last_axis(node)
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    lines = [*_centred_lines("x"), *_rms_lines("centred", node.attributes.get_float("epsilon", 1e-5))]
    lines += ["weighted = Mul(normed, w)", "y = Add(weighted, b)" if biased else "y = Identity(weighted)"]
    return Body(inputs=("x", "w", "b")[: 2 + biased], outputs=("y",), lines=tuple(lines))


def skip_rms_norm(node: ir.Node) -> Body:
    """The norm of a sum, and the sum."""
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    lines = (*_sum_lines(node, 3), *_rms_lines("total", epsilon), "y = Mul(normed, w)")
    return Body(inputs=_skip_inputs(node, ("a", "c", "w", "bias")), outputs=_SKIP_OUTPUTS, lines=lines)


def skip_layer_norm(node: ir.Node) -> Body:
    """The layer norm of a sum, and the sum."""
    lines = [*_sum_lines(node, 4), *_centred_lines("total")]
    lines += [*_rms_lines("centred", node.attributes.get_float("epsilon", 1e-12)), "weighted = Mul(normed, w)"]
    beta = len(node.inputs) > 3 and node.inputs[3] is not None
    lines.append("y = Add(weighted, beta)" if beta else "y = Identity(weighted)")
    return Body(inputs=_skip_inputs(node, ("a", "c", "w", "beta", "bias")), outputs=_SKIP_OUTPUTS, lines=tuple(lines))


def gelu(node: ir.Node) -> Body:
    """x Φ(x), or its approximation by tanh."""
    if node.attributes.get_string("approximate", "none") == "tanh":
        lines = [
            *_constants(three=3.0, cubic=0.044715, factor=0.7978845608028654),
            "cube = Pow(x, three)",
            "bent = Mul(cube, cubic)",
            "summed = Add(x, bent)",
            "inner = Mul(summed, factor)",
            "curve = Tanh(inner)",
        ]
    else:
        lines = [*_constants(root=0.7071067811865476), "inner = Mul(x, root)", "curve = Erf(inner)"]
    lines += [*_constants(one=1.0, half=0.5), "raised = Add(curve, one)", "halved = Mul(x, half)"]
    return Body(inputs=("x",), outputs=("y",), lines=(*lines, "y = Mul(halved, raised)"))


def product_with_transposed(node: ir.Node) -> Body:
    """x Wᵀ of com.microsoft::FusedMatMul(transB=1)."""
    plain = set(node.attributes) <= {"transB", "alpha"} and node.attributes.get_float("alpha", 1.0) == 1.0
    if not plain or node.attributes.get_int("transB", 0) != 1:
        raise ExportError(f"{node.name}: FusedMatMul with {', '.join(node.attributes)} has no plain form")
    return Body(inputs=("x", "w"), outputs=("y",), lines=("wt = Transpose <perm = [1, 0]> (w)", "y = MatMul(x, wt)"))


def positions() -> Body:
    """The positions [T] of the tokens fed, and of all keys [S], from input_ids and a key cache [B, K, P, D]."""
    lines = (
        *_integers(zero=0, one=1),
        *_ints(axis=[0]),
        "fed_1 = Shape <start = 1, end = 2> (input_ids)",
        "before_1 = Shape <start = 2, end = 3> (past)",
        "all_1 = Add(before_1, fed_1)",
        "before = Squeeze(before_1, axis)",
        "all = Squeeze(all_1, axis)",
        "of_queries = Range(before, all, one)",
        "of_keys = Range(zero, all, one)",
    )
    return Body(inputs=("input_ids", "past"), outputs=("of_queries", "of_keys"), lines=lines)


def attention_bias(window: int) -> Body:
    """What is added to scores: 0 where a query may see a key, else `LOWEST`; [B, 1, T, S].

    A query sees keys up to its own position (with a window, that many), of tokens whose attention_mask is not 0.
    """
    lines = [*_ints(one=[1], middle=[1, 2]), *_constants(zero=0.0, lowest=LOWEST)]
    lines += ["rows = Unsqueeze(of_queries, one)", "seen = LessOrEqual(of_keys, rows)"]
    last = "seen"
    if window > 0:
        lines += [*_integers(window=window), "border = Sub(rows, window)", "recent = Greater(of_keys, border)"]
        lines.append("near = And(seen, recent)")
        last = "near"
    lines += [
        "real = Cast <to = 9> (attention_mask)",
        "real_4 = Unsqueeze(real, middle)",
        f"allowed = And({last}, real_4)",
        "bias = Where(allowed, zero, lowest)",
    ]
    return Body(inputs=("attention_mask", "of_queries", "of_keys"), outputs=("bias",), lines=tuple(lines))


def attention(node: ir.Node, head_size: int) -> Body:
    """com.microsoft::GroupQueryAttention: rotary positions, caches grown by Concat, grouped queries.

    Inputs: qkv packed, or q, k, v; past_key, past_value [B, K, P, D]; bias [B, 1, T, S]; cos, sin [T, D/2] where there
    are rotary positions. Queries of one key-value head are rows of one product: [B, K, H/K T, D].
    """
    heads, shared = node.attributes.get_int("num_heads"), node.attributes.get_int("kv_num_heads")
    _refuse_unknown(node)
    packed = node.inputs[1] is None
    rotary = node.attributes.get_int("do_rotary", 0) == 1
    lines = _split_lines(heads, shared, head_size) if packed else []
    for name, count in (("q", heads), ("k", shared), ("v", shared)):
        lines += _by_head_lines(name, count, head_size)
    q, k = "q_heads", "k_heads"
    if rotary:
        caches = node.inputs[7]
        assert caches is not None and caches.shape is not None
        half = int(caches.shape[1])  # type: ignore[arg-type]
        lines += [*_rotary_lines("q", half, head_size), *_rotary_lines("k", half, head_size)]
        q, k = "q_turned", "k_turned"
    scale = node.attributes.get_float("scale", 0.0) or head_size**-0.5
    lines += [
        f"present_key = Concat <axis = 2> (past_key, {k})",
        "present_value = Concat <axis = 2> (past_value, v_heads)",
        *_constants(scale=scale),
        *_ints(by_shared=[0, shared, -1, head_size], to_heads=[0, heads, -1, 0], to_shared=[0, shared, -1, 0]),
        *_ints(by_heads=[0, heads, -1, head_size], flat=[0, 0, heads * head_size]),
        f"q_scaled = Mul({q}, scale)",
        "q_rows = Reshape(q_scaled, by_shared)",
        "k_columns = Transpose <perm = [0, 1, 3, 2]> (present_key)",
        "products = MatMul(q_rows, k_columns)",
        *_capped_lines(node.attributes.get_float("softcap", 0.0)),
        "scores = Reshape(capped, to_heads)",
        "biased = Add(scores, bias)",
        "weights = Softmax <axis = -1> (biased)",
        "weight_rows = Reshape(weights, to_shared)",
        "mixed = MatMul(weight_rows, present_value)",
        "mixed_heads = Reshape(mixed, by_heads)",
        "by_token = Transpose <perm = [0, 2, 1, 3]> (mixed_heads)",
        "y = Reshape(by_token, flat)",
    ]
    inputs = ("qkv",) if packed else ("q", "k", "v")
    return Body(
        inputs=(*inputs, "past_key", "past_value", "bias", *(("cos", "sin") if rotary else ())),
        outputs=("y", "present_key", "present_value"),
        lines=tuple(lines),
    )


def causal_conv(node: ir.Node) -> Body:
    """com.microsoft::CausalConvWithState: columns before the first come from the state."""
    weight, biased = node.inputs[1], node.inputs[2] is not None
    if weight is None or weight.shape is None or len(node.inputs) < 4 or node.inputs[3] is None:
        raise ExportError(f"{node.name}: a convolution without a state has no basic form here")
    channels, _, taps = weight.shape.numpy()
    activation = node.attributes.get_string("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise ExportError(f"{node.name}: activation {activation!r} has no basic form here; expected none or silu")
    lines = [
        *_ints(first=[1 - taps], end=[2**31 - 1], axis=[2]),
        "joined = Concat <axis = 2> (past, x)",
        "present = Slice(joined, first, end, axis)",
        f"mixed = Conv <group = {channels}, kernel_shape = [{taps}]> (joined, w{', b' * biased})",
    ]
    lines += ["y = Identity(mixed)"] if activation == "none" else ["gate = Sigmoid(mixed)", "y = Mul(mixed, gate)"]
    return Body(inputs=("x", "w", *(("b",) if biased else ()), "past"), outputs=("y", "present"), lines=tuple(lines))


def linear_attention(node: ir.Node) -> Body:
    """com.microsoft::LinearAttention, gated, one decay a head: S ← exp(g) S + k vᵀ; o = q S, for all tokens at once.

    With G the sums of g up to each token, token t reads token s ≤ t by exp(G_t - G_s) q_t·k_s, and the state that was
    there by exp(G_t). Time and memory grow with T²: long prompts are better fed in pieces.
    """
    heads, state = node.attributes.get_int("q_num_heads", 0), node.inputs[3]
    rule = node.attributes.get_string("update_rule", "")
    decay = node.inputs[4] if len(node.inputs) > 4 else None
    per_head = decay is not None and decay.shape is not None and decay.shape[-1] == heads
    grouped = node.attributes.get_int("kv_num_heads", 0) != heads
    if rule != "gated" or grouped or not per_head or state is None or state.shape is None or state.shape.rank() != 4:
        raise ExportError(
            f"{node.name}: a recurrence other than gated, with one decay a head (Mamba-2's), has no basic form; "
            "try --lowering dense or kernel"
        )
    keys, values = state.shape[2], state.shape[3]
    lines = [
        *_integers(zero=0, one=1),
        *_ints(axis=[0], last=[-1], to_keys=[0, 0, heads, int(keys)], to_values=[0, 0, heads, int(values)]),  # type: ignore[arg-type]
        *_ints(flat=[0, 0, heads * int(values)]),  # type: ignore[arg-type]
        *_constants(lowest=LOWEST, scale=node.attributes.get_float("scale", 1.0)),
        "count_1 = Shape <start = 1, end = 2> (query)",
        "count = Squeeze(count_1, axis)",
        "steps = Range(zero, count, one)",
        "rows = Unsqueeze(steps, last)",
        "columns = Unsqueeze(steps, axis)",
        "earlier = LessOrEqual(columns, rows)",
        "lower = Cast <to = 1> (earlier)",
        "q_apart = Reshape(query, to_keys)",
        "k_apart = Reshape(key, to_keys)",
        "v_apart = Reshape(value, to_values)",
        "q = Transpose <perm = [0, 2, 1, 3]> (q_apart)",
        "k = Transpose <perm = [0, 2, 1, 3]> (k_apart)",
        "v = Transpose <perm = [0, 2, 1, 3]> (v_apart)",
        "g_heads = Transpose <perm = [0, 2, 1]> (decay)",
        "g = Unsqueeze(g_heads, last)",
        "sums = MatMul(lower, g)",
        "sums_across = Transpose <perm = [0, 1, 3, 2]> (sums)",
        "between = Sub(sums, sums_across)",
        "reach = Where(earlier, between, lowest)",
        "fade = Exp(reach)",
        "k_columns = Transpose <perm = [0, 1, 3, 2]> (k)",
        "products = MatMul(q, k_columns)",
        "faded = Mul(products, fade)",
        "within = MatMul(faded, v)",
        "since = Exp(sums)",
        "q_since = Mul(q, since)",
        "before = MatMul(q_since, past)",
        "total = Add(within, before)",
        "scaled = Mul(total, scale)",
        "by_token = Transpose <perm = [0, 2, 1, 3]> (scaled)",
        "y = Reshape(by_token, flat)",
        "end = Gather <axis = 2> (sums, last)",
        "until = Sub(end, sums)",
        "left = Exp(until)",
        "k_left = Mul(k, left)",
        "k_left_columns = Transpose <perm = [0, 1, 3, 2]> (k_left)",
        "added = MatMul(k_left_columns, v)",
        "whole = Exp(end)",
        "kept = Mul(whole, past)",
        "present = Add(kept, added)",
    ]
    return Body(inputs=("query", "key", "value", "past", "decay"), outputs=("y", "present"), lines=tuple(lines))


_SKIP_OUTPUTS = ("y", "mean", "inverse", "total")
_KNOWN = {"num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved", "local_window_size", "softcap"}
_UNUSED = {"smooth_softmax": 0, "qk_output": 0, "kv_cache_bit_width": 0, "rotary_interleaved": 0}


def _refuse_unknown(node: ir.Node) -> None:
    """Raise ExportError where attention does more than `attention` writes."""
    extra = [v for v in node.inputs[9:] if v is not None]
    odd = [n for n, a in node.attributes.items() if n not in _KNOWN and a.value != _UNUSED.get(n, object())]
    interleaved = node.attributes.get_int("rotary_interleaved", 0) != 0
    if extra or odd or interleaved:
        what = ", ".join(odd) or (extra[0].name if extra else "rotary_interleaved")
        raise ExportError(f"{node.name}: attention with {what} has no basic form here")


def _require_last_axis(node: ir.Node) -> None:
    axis, x = node.attributes.get_int("axis", -1), node.inputs[0]
    if axis != -1 and not (x is not None and x.shape is not None and axis == x.shape.rank() - 1):
        raise ExportError(f"{node.name}: a norm over axis {axis} has no basic form here; expected the last axis")


def _rms_lines(x: str, epsilon: float) -> list[str]:
    """`normed`: x over the root of its mean square."""
    return [
        *_constants(two=2.0, epsilon=epsilon),
        f"square = Pow({x}, two)",
        "power = ReduceMean <axes = [-1], keepdims = 1> (square)",
        "shifted = Add(power, epsilon)",
        "length = Sqrt(shifted)",
        f"normed = Div({x}, length)",
    ]


def _centred_lines(x: str) -> list[str]:
    return [f"centre = ReduceMean <axes = [-1], keepdims = 1> ({x})", f"centred = Sub({x}, centre)"]


def _sum_lines(node: ir.Node, bias: int) -> list[str]:
    """`total`: the sum that is normed; `mean` and `inverse`, outputs that nobody reads."""
    biased = len(node.inputs) > bias and node.inputs[bias] is not None
    first = ["plain = Add(a, c)", "total = Add(plain, bias)"] if biased else ["total = Add(a, c)"]
    return [*first, "mean = Identity(total)", "inverse = Identity(total)"]


def _skip_inputs(node: ir.Node, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, value in zip(names, node.inputs, strict=False) if value is not None)


def _split_lines(heads: int, shared: int, size: int) -> list[str]:
    return [*_ints(sizes=[heads * size, shared * size, shared * size]), "q, k, v = Split <axis = -1> (qkv, sizes)"]


def _by_head_lines(name: str, count: int, size: int) -> list[str]:
    """`{name}_heads` [B, count, T, D]."""
    return [
        *_ints(**{f"{name}_shape": [0, 0, count, size]}),
        f"{name}_apart = Reshape({name}, {name}_shape)",
        f"{name}_heads = Transpose <perm = [0, 2, 1, 3]> ({name}_apart)",
    ]


def _rotary_lines(name: str, half: int, size: int) -> list[str]:
    """`{name}_turned`: the first 2 · half numbers of a head turned by cos and sin, the others as they are."""
    rest = size - 2 * half
    parts = [f"{name}_a", f"{name}_b", *([f"{name}_rest"] if rest else [])]
    return [
        *_ints(**{f"{name}_halves": [half, half, *([rest] if rest else [])]}),
        f"{', '.join(parts)} = Split <axis = -1> ({name}_heads, {name}_halves)",
        f"{name}_ac = Mul({name}_a, cos)",
        f"{name}_bs = Mul({name}_b, sin)",
        f"{name}_bc = Mul({name}_b, cos)",
        f"{name}_as = Mul({name}_a, sin)",
        f"{name}_first = Sub({name}_ac, {name}_bs)",
        f"{name}_second = Add({name}_bc, {name}_as)",
        f"{name}_turned = Concat <axis = -1> ({', '.join([f'{name}_first', f'{name}_second', *parts[2:]])})",
    ]


def _capped_lines(softcap: float) -> list[str]:
    if not softcap:
        return ["capped = Identity(products)"]
    return [
        *_constants(cap=softcap),
        "small = Div(products, cap)",
        "bounded = Tanh(small)",
        "capped = Mul(bounded, cap)",
    ]


def _constants(**values: float) -> list[str]:
    return [f"{name} = Constant <value = float {{{value!r}}}> ()" for name, value in values.items()]


def _integers(**values: int) -> list[str]:
    return [f"{name} = Constant <value_int = {value}> ()" for name, value in values.items()]


def _ints(**values: list[int]) -> list[str]:
    return [f"{name} = Constant <value_ints = {value}> ()" for name, value in values.items()]
