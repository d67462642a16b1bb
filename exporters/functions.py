"""Function bodies of the operators of domain `edgeslim`, in standard operators.

A node whose operator carries such a body runs everywhere: stock onnxruntime inlines it and unpacks the constant matrix
once when the model is loaded (constant folding); where the kernel library is registered, its kernel runs instead.
Bodies differ by the form of the matrix and by which optional inputs are there, so each variant in use is one ONNX
function of the same name under an overload of its own.

`runtime/native/packed_linear/layout.h` says what the tensors mean, `packed_linear/op.cc` and `packed_gather/op.cc` what
the operators compute. Offsets are not read here: values lie without gaps, so that counting the masks gives them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx.parser
import onnx_ir as ir

from edgeslim.exporters.packed import Form

DOMAIN = "edgeslim"
VERSION = 1
LINEAR, GATHER, ATTENTION = "PackedLinear", "PackedGather", "GroupQueryAttention"
CONV, SCAN, SELECTIVE_SCAN = "CausalConv", "StateSpaceScan", "SelectiveScan"
GATED = "gated"
"""Overload of the selective scan that is given a gate."""
POSITIONS, NORMS, CAPPED = "positions", "norms", "capped"
"""Parts of the overloads of attention that is told the positions of its tokens, that norms queries and keys, and whose
scores have a bound."""
LINEAR_INPUTS = ("x", "values", "scales", "masks", "offsets", "bias", "gate", "norm", "residual")
GATHER_INPUTS = ("ids", "values", "scales", "masks", "offsets")
ATTENTION_INPUTS = (
    "qkv",
    "key",
    "value",
    "past_key",
    "past_value",
    "seqlens_k",
    "total_sequence_length",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "query_norm",
    "key_norm",
)
ATTENTION_ATTRIBUTES = ("num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved", "local_window_size")
NORM_EPSILON, SOFTCAP = "norm_epsilon", "softcap"
"""Further attributes of attention that norms queries and keys, and of one whose scores s become c tanh(s / c)."""
CONV_INPUTS = ("x", "weight", "bias", "past_state")
SCAN_INPUTS = ("xbc", "dt", "dt_bias", "A_log", "D", "past_state")
SELECTIVE_SCAN_INPUTS = ("x", "dt", "dt_bias", "A_log", "D", "b", "c", "past_state", "gate")
OPTIONAL = LINEAR_INPUTS[5:]
FUNCTION = "function"
"""A further attribute of a product whose gate, or else x, goes through another function than a gate does by itself."""
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "silu": ("sigmoid = Sigmoid({0})", "activated = Mul({0}, sigmoid)"),
    "gelu": ('activated = Gelu <approximate = "none"> ({0})',),
    "gelu_tanh": ('activated = Gelu <approximate = "tanh"> ({0})',),
    "relu": ("activated = Relu({0})",),
    "relu_squared": ("positive_part = Relu({0})", "activated = Mul(positive_part, positive_part)"),
}
"""Those functions and how a body computes `activated` from a value."""
OPSET = 23
"""Opset of the bodies: the first with RMSNormalization."""

_POSITIONS_INPUT = ATTENTION_INPUTS.index("position_ids")
_MATRIX = ("layout", "n", "k", "bits", "group", "pattern_n", "pattern_m")
_ATTENTION_TYPES = ("int", "int", "float", "int", "int", "int")
_LINEAR_ATTRIBUTES = (*_MATRIX, "activations", "x_start", "gate_start", "epsilon")


@dataclass(frozen=True, kw_only=True)
class LinearVariant:
    """Which body a PackedLinear node needs: the form of its matrix, the activations, the optional inputs it has, the
    function where it names one."""

    form: Form
    activations: str = "int8"
    optional: frozenset[str] = frozenset()
    function: str = ""

    @property
    def overload(self) -> str:
        """Name of the overload."""
        parts = [form_name(self.form), self.activations, *(n for n in OPTIONAL if n in self.optional)]
        return "_".join([*parts, *([self.function] if self.function else [])])


def form_name(form: Form) -> str:
    """Return the form in a word, such as ``bitmap_int4g64`` or ``nm2of4_fp16``."""
    pattern = "" if form.pattern is None else f"{form.pattern[0]}of{form.pattern[1]}"
    kind = f"int{form.bits}" if form.is_integer else f"fp{form.bits}"
    return f"{form.layout}{pattern}_{kind}" + (f"g{form.group}" if form.group else "")


def linear_function(variant: LinearVariant) -> ir.Function:
    """Return the body of PackedLinear for `variant`."""
    form = variant.form
    rounded = variant.activations == "int8" and form.is_integer
    lines = [*_matrix_lines(form), *_prologue_lines(variant)]
    if rounded:
        lines += _QUANTIZE
    if rounded and form.bits == 8 and not form.group:
        lines += _INTEGER_PRODUCT
    else:
        lines += [*_weight_lines(form), *(_ROUNDED_PRODUCT if rounded else _FLOAT_PRODUCT)]
    total = "product"
    for name in ("bias", "residual"):
        if name in variant.optional:
            lines.append(f"with_{name} = Add({total}, {name})")
            total = f"with_{name}"
    # The last operator writes y itself: from an Identity onnxruntime takes the input, whose width is declared nowhere.
    lines[-1] = f"y = {lines[-1].removeprefix(f'{total} = ')}"
    attributes = (*_LINEAR_ATTRIBUTES, *([FUNCTION] if variant.function else []))
    return _function(LINEAR, variant.overload, LINEAR_INPUTS, attributes, lines)


def gather_function(form: Form) -> ir.Function:
    """Return the body of PackedGather for a matrix of `form`; its overload is `form_name(form)`."""
    lines = [*_matrix_lines(form), "rows = Gather <axis = 0> (codes, ids)", "as_float = Cast <to = 1> (rows)"]
    if form.is_integer:
        lines += [*_spread_lines(form), "row_scales = Gather <axis = 0> (spread, ids)", "y = Mul(as_float, row_scales)"]
    else:
        lines.append("y = Identity(as_float)")
    return _function(GATHER, form_name(form), GATHER_INPUTS, _MATRIX, lines)


def attention_function(*, positions: bool = False, norms: bool = False, capped: bool = False) -> ir.Function:
    """Return the body of GroupQueryAttention: the operator of com.microsoft, which computes the same.

    With `positions`, the overload of nodes that have position_ids: they rotate before, since the operator of
    com.microsoft reads only the first position of a prompt. With `norms`, that of nodes that have query_norm and
    key_norm, of a head's entries or all heads'. With `capped`, that of nodes that have a softcap.
    """
    inputs = ATTENTION_INPUTS[: None if norms else _POSITIONS_INPUT + positions]
    kinds = dict(zip(ATTENTION_ATTRIBUTES, _ATTENTION_TYPES, strict=True))
    lines: list[str] = []
    query, key, value = inputs[:3]
    if positions or norms:
        lines, (query, key, value) = [*_APART], ("query_part", "key_part", "value_part")
    if norms:
        lines += [*_PIECES, *_norm_lines("query"), *_norm_lines("key")]
        query, key, value = "query_normed", "key_normed", "value_flat"
    if positions:
        del kinds["do_rotary"], kinds["rotary_interleaved"]
        lines += [_turn_line("query_turned", query, "num_heads"), _turn_line("key_turned", key, "kv_num_heads")]
        query, key = "query_turned", "key_turned"
    if capped:
        kinds[SOFTCAP] = "float"
    passed = ", ".join(f"{name}: {kind} = @{name}" for name, kind in kinds.items())
    read, outputs = ", ".join([query, key, value, *inputs[3 : 7 if positions else 9]]), "y, present_key, present_value"
    lines.append(f"{outputs} = com.microsoft.{ATTENTION} <{passed}> ({read})")
    parts = ((POSITIONS, positions), (NORMS, norms), (CAPPED, capped))
    overload = "_".join(name for name, is_there in parts if is_there)
    attributes = (*ATTENTION_ATTRIBUTES, *([NORM_EPSILON] if norms else []), *([SOFTCAP] if capped else []))
    return _parsed(ATTENTION, overload, inputs, outputs, attributes, lines)


def conv_function() -> ir.Function:
    """Return the body of CausalConv: the operator of com.microsoft, which wants channels before tokens."""
    lines = [
        "one = Constant <value_ints = [1]> ()",
        "last = Constant <value_ints = [-1]> ()",
        "x_first = Constant <value_int: int = @x_start> ()",
        "x_from = Reshape(x_first, one)",
        "channels = Shape <start = 0, end = 1> (weight)",
        "x_to = Add(x_from, channels)",
        "columns = Slice(x, x_from, x_to, last)",
        "by_channel = Transpose <perm = [0, 2, 1]> (columns)",
        "mixed, present_state = com.microsoft.CausalConvWithState <activation: string = @activation> "
        "(by_channel, weight, bias, past_state)",
        "y = Transpose <perm = [0, 2, 1]> (mixed)",
    ]
    return _stateful_function(CONV, ("x_start", "activation"), CONV_INPUTS, lines)


def scan_function() -> ir.Function:
    """Return the body of StateSpaceScan: com.microsoft's LinearAttention and the nodes that mobius puts around it."""
    sizes = ("num_heads", "head_size", "state_size", "groups", "dt_start")
    lines = ["one = Constant <value_ints = [1]> ()"]
    for name in sizes:
        lines += [f"{name}_0 = Constant <value_int: int = @{name}> ()", f"{name}_1 = Reshape({name}_0, one)"]
    return _stateful_function(SCAN, sizes, SCAN_INPUTS, [*lines, *_SCAN])


def selective_scan_function(*, gated: bool = False) -> ir.Function:
    """Return the body of SelectiveScan: a loop over tokens, which stock onnxruntime runs two to four times as fast as
    its LinearAttention with a head a channel. `gated`: the overload of nodes that have a gate."""
    columns = {"x": "channels", "dt": "channels", "b": "size", "c": "size", **({"gate": "channels"} if gated else {})}
    lines = list(_SELECTIVE_SIZES)
    for name, count in columns.items():
        lines += [
            f"{name}_first = Constant <value_int: int = @{name}_start> ()",
            f"{name}_from = Reshape({name}_first, one)",
            f"{name}_to = Add({name}_from, {count})",
            f"{name}_columns = Slice({name}, {name}_from, {name}_to, last)",
        ]
    lines += _SELECTIVE_SCAN
    lines += _SELECTIVE_GATE if gated else ["y = Identity(total)"]
    attributes = tuple(f"{name}_start" for name in ("x", "dt", "b", "c", "gate"))
    overload = GATED if gated else ""
    return _stateful_function(SELECTIVE_SCAN, attributes, SELECTIVE_SCAN_INPUTS, lines, overload)


def _stateful_function(
    name: str, attributes: tuple[str, ...], inputs: tuple[str, ...], lines: list[str], overload: str = ""
) -> ir.Function:
    return _parsed(name, overload, inputs, "y, present_state", attributes, lines)


def _parsed(
    name: str, overload: str, inputs: tuple[str, ...], outputs: str, attributes: tuple[str, ...], lines: list[str]
) -> ir.Function:
    named = f', overload: "{overload}"' if overload else ""
    text = (
        f'<opset_import: ["" : {OPSET}, "com.microsoft" : 1], domain: "{DOMAIN}"{named}>\n'
        f"{name} <{', '.join(attributes)}> ({', '.join(inputs)}) => ({outputs}) {{\n  " + "\n  ".join(lines) + "\n}"
    )
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def _norm_lines(name: str) -> list[str]:
    """`<name>_normed`: the part `name` in pieces of as many columns as its norm has entries, each normed."""
    return [
        f"{name}_norm_size = Shape({name}_norm)",
        f"{name}_pieces_shape = Concat <axis = 0> (kept, last, {name}_norm_size)",
        f"{name}_pieces = Reshape({name}_part, {name}_pieces_shape)",
        f"{name}_pieces_normed = RMSNormalization <axis = -1, epsilon: float = @{NORM_EPSILON}> "
        f"({name}_pieces, {name}_norm)",
        f"{name}_normed = Reshape({name}_pieces_normed, flat)",
    ]


def _turn_line(turned: str, part: str, heads: str) -> str:
    return (
        f"{turned} = com.microsoft.RotaryEmbedding <num_heads: int = @{heads}, interleaved: int = "
        f"@rotary_interleaved> ({part}, position_ids, cos_cache, sin_cache)"
    )


def _function(
    name: str, overload: str, inputs: tuple[str, ...], attributes: tuple[str, ...], lines: list[str]
) -> ir.Function:
    text = (
        f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}", overload: "{overload}">\n'
        f"{name} <{', '.join(attributes)}> ({', '.join(inputs)}) => (y) {{\n  " + "\n  ".join(lines) + "\n}"
    )
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def _matrix_lines(form: Form) -> list[str]:
    """`codes` [n, k]: int8 where values are integers, else their floats; `factors` [n, groups] float."""
    lines = [*_SIZES, *_elements_lines(form)]
    lines += _DENSE_GRID if form.layout == "dense" else [*_MASK_BITS, *_expand_lines(form)]
    if form.layout == "dense" and form.is_integer:
        lines += [*_signed_lines(form.bits, "grid"), "settled = Cast <to = 3> (signed)"]
    elif form.layout == "dense":
        lines.append("settled = Identity(grid)")
    order, inner = ("0, 2, 1, 3", "sixteen, four") if form.is_integer else ("0, 3, 1, 2", "four, sixteen")
    lines += [
        f"parts_shape = Concat <axis = 0> (last, steps, {inner})",
        "parts = Reshape(settled, parts_shape)",
        f"by_row = Transpose <perm = [{order}]> (parts)",
        "columns = Mul(steps, four)",
        "rows_shape = Concat <axis = 0> (last, columns)",
        "padded = Reshape(by_row, rows_shape)",
        "codes = Slice(padded, origin, n_k, both_axes)",
    ]
    return [*lines, *_FACTORS] if form.is_integer else lines


def _elements_lines(form: Form) -> list[str]:
    """`elements`: the stored values one by one, and 64 bytes of padding, which no index reaches. Of 3 bits, layout
    dense has eight in three bytes; elsewhere there is one for each bit that a value may begin with."""
    if form.bits == 3:
        return _THREE_BIT_ELEMENTS if form.layout == "dense" else _THREE_BITS_EVERYWHERE
    if form.bits != 4:
        return ["elements = Identity(values)"]
    return [
        "nibble = Constant <value = uint8[1] {15}> ()",
        "half_byte = Constant <value = uint8[1] {4}> ()",
        "low = BitwiseAnd(values, nibble)",
        'high = BitShift <direction = "RIGHT"> (values, half_byte)',
        "low_column = Unsqueeze(low, last)",
        "high_column = Unsqueeze(high, last)",
        "pairs = Concat <axis = -1> (low_column, high_column)",
        "elements = Reshape(pairs, last)",
    ]


def _expand_lines(form: Form) -> list[str]:
    """`settled` [tiles, steps, 64]: the stored values at their positions, zero elsewhere."""
    bits = form.bits
    lines = [
        f"width = Constant <value = int32[1] {{{bits}}}> ()",
        "seven = Constant <value = int32[1] {7}> ()",
        "eight = Constant <value = int32[1] {8}> ()",
        "counts = ReduceSum <keepdims = 0> (ones, last)",
        "count_bits = Mul(counts, width)",
        "count_bits_up = Add(count_bits, seven)",
        "step_bytes = Div(count_bits_up, eight)",
        "flat_bytes = Reshape(step_bytes, last)",
        "flat_starts = CumSum <exclusive = 1> (flat_bytes, zero_axis)",
        "counts_shape = Shape(counts)",
        "start_bytes = Reshape(flat_starts, counts_shape)",
        "start_bits = Mul(start_bytes, eight)",
        "ranks = CumSum <exclusive = 1> (ones, two_axis)",
        *(_THREE_BITS_AT if bits == 3 else _ELEMENTS_AT),
    ]
    if form.is_integer:
        return [*lines, *_signed_lines(bits, "found"), "masked = Mul(signed, ones)", "settled = Cast <to = 3> (masked)"]
    return [
        *lines,
        "found_float = Cast <to = 1> (found)",
        "keep = Cast <to = 1> (ones)",
        "settled = Mul(found_float, keep)",
    ]


def _signed_lines(bits: int, name: str) -> list[str]:
    """`signed`: int32 values of the codes `name`."""
    return [
        f"zero_code = Constant <value = int32[1] {{{1 << (bits - 1)}}}> ()",
        f"unsigned = Cast <to = 6> ({name})",
        "signed = Sub(unsigned, zero_code)",
    ]


def _prologue_lines(variant: LinearVariant) -> list[str]:
    """`t` [..., k]: the columns of x, gated or through a function, and normalized."""
    lines = [*_columns_lines("x")]
    current = "x_columns"
    if "gate" in variant.optional:
        lines += [*_columns_lines("gate"), *_function_lines(variant.function or "silu", "gate_columns")]
        lines.append(f"gated = Mul({current}, activated)")
        current = "gated"
    elif variant.function:
        lines += _function_lines(variant.function, current)
        current = "activated"
    if "norm" in variant.optional:
        lines.append(f"normed = RMSNormalization <axis = -1, epsilon: float = @epsilon> ({current}, norm)")
        current = "normed"
    return [*lines, f"t = Identity({current})"]


def _function_lines(function: str, argument: str) -> list[str]:
    return [line.format(argument) for line in FUNCTIONS[function]]


def _columns_lines(name: str) -> list[str]:
    return [
        f"{name}_first = Constant <value_int: int = @{name}_start> ()",
        f"{name}_from = Reshape({name}_first, one)",
        f"{name}_to = Add({name}_from, k_1)",
        f"{name}_columns = Slice({name}, {name}_from, {name}_to, last)",
    ]


def _weight_lines(form: Form) -> list[str]:
    """`weight` [k, n] in float."""
    lines = ["code_values = Cast <to = 1> (codes)"]
    if form.is_integer:
        lines += [*_spread_lines(form), "matrix = Mul(code_values, spread)"]
    else:
        lines.append("matrix = Identity(code_values)")
    return [*lines, "weight = Transpose <perm = [1, 0]> (matrix)"]


def _spread_lines(form: Form) -> list[str]:
    """`spread` [n, k] or [n, 1]: the scale of each weight."""
    if not form.group:
        return ["spread = Identity(factors)"]
    return [
        f"group_size = Constant <value_ints = [{form.group}]> ()",
        "factor_column = Unsqueeze(factors, last)",
        "spread_shape = Concat <axis = 0> (n_1, group_count, group_size)",
        "spread_3d = Expand(factor_column, spread_shape)",
        "wide_shape = Concat <axis = 0> (n_1, last)",
        "wide = Reshape(spread_3d, wide_shape)",
        "spread = Slice(wide, origin, n_k, both_axes)",
    ]


_SIZES = [
    "n = Constant <value_int: int = @n> ()",
    "k = Constant <value_int: int = @k> ()",
    "zero_axis = Constant <value = int32 {0}> ()",
    "two_axis = Constant <value = int32 {2}> ()",
    "one = Constant <value_ints = [1]> ()",
    "last = Constant <value_ints = [-1]> ()",
    "three = Constant <value_ints = [3]> ()",
    "four = Constant <value_ints = [4]> ()",
    "sixteen = Constant <value_ints = [16]> ()",
    "positions = Constant <value_ints = [64]> ()",
    "origin = Constant <value_ints = [0, 0]> ()",
    "both_axes = Constant <value_ints = [0, 1]> ()",
    "n_1 = Reshape(n, one)",
    "k_1 = Reshape(k, one)",
    "n_k = Concat <axis = 0> (n_1, k_1)",
    "k_up = Add(k_1, three)",
    "steps = Div(k_up, four)",
    "grid_shape = Concat <axis = 0> (last, steps, positions)",
]
_DENSE_GRID = [
    "element_count = Shape(elements)",
    "n_up_start = Constant <value_ints = [15]> ()",
    "n_up = Add(n_1, n_up_start)",
    "tiles = Div(n_up, sixteen)",
    "tile_steps = Mul(tiles, steps)",
    "stored_count = Mul(tile_steps, positions)",
    "zero_start = Constant <value_ints = [0]> ()",
    "first_axis = Constant <value_ints = [0]> ()",
    "stored = Slice(elements, zero_start, stored_count, first_axis)",
    "grid = Reshape(stored, grid_shape)",
]
_ELEMENTS_AT = [
    "starts = Div(start_bits, width)",
    "start_column = Unsqueeze(starts, last)",
    "index = Add(start_column, ranks)",
    "found = Gather <axis = 0> (elements, index)",
]
_THREE_BITS_AT = [
    "start_column = Unsqueeze(start_bits, last)",
    "rank_bits = Mul(ranks, width)",
    "index = Add(start_column, rank_bits)",
    "found = Gather <axis = 0> (elements, index)",
]
_THREE_BITS_EVERYWHERE = [  # a step begins on a whole byte, which need not be a whole value
    "byte_words = Cast <to = 6> (values)",
    "second_byte = Constant <value_ints = [1]> ()",
    "far = Constant <value_ints = [9223372036854775807]> ()",
    "byte_axis = Constant <value_ints = [0]> ()",
    "later_bytes = Slice(byte_words, second_byte, far, byte_axis)",
    "no_byte = Constant <value = int32[1] {0}> ()",
    "next_bytes = Concat <axis = 0> (later_bytes, no_byte)",
    "byte_values = Constant <value = int32[1] {256}> ()",
    "lifted_bytes = Mul(next_bytes, byte_values)",
    "words = Add(byte_words, lifted_bytes)",
    "word_column = Unsqueeze(words, last)",
    "powers = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()",
    "from_bits = Div(word_column, powers)",
    "three_bits = Constant <value = int32[1] {8}> ()",
    "fields = Mod(from_bits, three_bits)",
    "flat_fields = Reshape(fields, last)",
    "elements = Cast <to = 2> (flat_fields)",
]
_THREE_BIT_ELEMENTS = [
    "byte_count = Shape(values)",
    "triple_count = Div(byte_count, three)",
    "whole_bytes = Mul(triple_count, three)",
    "no_byte = Constant <value_ints = [0]> ()",
    "byte_axis = Constant <value_ints = [0]> ()",
    "whole = Slice(values, no_byte, whole_bytes, byte_axis)",
    "triples_shape = Concat <axis = 0> (last, three)",
    "triples = Reshape(whole, triples_shape)",
    "triple_words = Cast <to = 6> (triples)",
    "places = Constant <value = int32[3] {1, 256, 65536}> ()",
    "placed = Mul(triple_words, places)",
    "words = ReduceSum <keepdims = 1> (placed, last)",
    "powers = Constant <value = int32[8] {1, 8, 64, 512, 4096, 32768, 262144, 2097152}> ()",
    "from_values = Div(words, powers)",
    "three_bits = Constant <value = int32[1] {8}> ()",
    "eights = Mod(from_values, three_bits)",
    "flat_eights = Reshape(eights, last)",
    "elements = Cast <to = 2> (flat_eights)",
]
_MASK_BITS = [
    "shifts = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()",
    "low_bit = Constant <value = uint8[1] {1}> ()",
    "mask_column = Unsqueeze(masks, last)",
    'shifted = BitShift <direction = "RIGHT"> (mask_column, shifts)',
    "bits = BitwiseAnd(shifted, low_bit)",
    "bit_grid = Reshape(bits, grid_shape)",
    "ones = Cast <to = 6> (bit_grid)",
]
_FACTORS = [
    "group_count = Shape <start = 1, end = 2> (scales)",
    "scale_rows = Transpose <perm = [0, 2, 1]> (scales)",
    "factors_shape = Concat <axis = 0> (last, group_count)",
    "padded_factors = Reshape(scale_rows, factors_shape)",
    "single_factors = Cast <to = 1> (padded_factors)",
    "factors_origin = Constant <value_ints = [0]> ()",
    "row_axis = Constant <value_ints = [0]> ()",
    "factors = Slice(single_factors, factors_origin, n_1, row_axis)",
]
_QUANTIZE = [
    "magnitude = Abs(t)",
    "largest = ReduceMax <keepdims = 1> (magnitude, last)",
    "tiny = Constant <value = float {1e-30}> ()",
    "steps_of_127 = Constant <value = float {127.0}> ()",
    "positive = Max(largest, tiny)",
    "inverse = Div(steps_of_127, positive)",
    "token_scale = Div(largest, steps_of_127)",
    "stretched = Mul(t, inverse)",
    "token_codes = Round(stretched)",
]
_INTEGER_PRODUCT = [
    "offset = Constant <value = float {128.0}> ()",
    "token_zero = Constant <value = uint8 {128}> ()",
    "lifted = Add(token_codes, offset)",
    "token_bytes = Cast <to = 2> (lifted)",
    "codes_by_input = Transpose <perm = [1, 0]> (codes)",
    "sums = MatMulInteger(token_bytes, codes_by_input, token_zero)",
    "sums_float = Cast <to = 1> (sums)",
    "factor_row = Transpose <perm = [1, 0]> (factors)",
    "of_codes = Mul(sums_float, factor_row)",
    "product = Mul(of_codes, token_scale)",
]
_ROUNDED_PRODUCT = ["of_codes = MatMul(token_codes, weight)", "product = Mul(of_codes, token_scale)"]
_FLOAT_PRODUCT = ["product = MatMul(t, weight)"]
_APART = [
    "one = Constant <value_ints = [1]> ()",
    "heads_0 = Constant <value_int: int = @num_heads> ()",
    "key_heads_0 = Constant <value_int: int = @kv_num_heads> ()",
    "heads = Reshape(heads_0, one)",
    "key_heads = Reshape(key_heads_0, one)",
    "width = Shape <start = 3, end = 4> (past_key)",
    "query_size = Mul(heads, width)",
    "key_size = Mul(key_heads, width)",
    "sizes = Concat <axis = 0> (query_size, key_size, key_size)",
    "query_part, key_part, value_part = Split <axis = -1> (qkv, sizes)",
]
_PIECES = [
    "kept = Constant <value_ints = [0, 0]> ()",
    "last = Constant <value_ints = [-1]> ()",
    "flat = Constant <value_ints = [0, 0, -1]> ()",
    # Of values without a shape, com.microsoft's shape inference concludes that queries are packed; this gives them one.
    "value_flat = Reshape(value_part, flat)",
]
_SCAN = [
    "last = Constant <value_ints = [-1]> ()",
    "kept = Constant <value_ints = [0, 0]> ()",
    "inner = Mul(num_heads_1, head_size_1)",
    "shared = Mul(groups_1, state_size_1)",
    "of_group = Div(num_heads_1, groups_1)",
    "parts = Concat <axis = 0> (inner, shared, shared)",
    "heads_shape = Concat <axis = 0> (kept, num_heads_1, head_size_1)",
    "inner_shape = Concat <axis = 0> (kept, last)",
    "groups_shape = Concat <axis = 0> (kept, groups_1, one, state_size_1)",
    "repeats = Concat <axis = 0> (one, one, one, of_group, one)",
    "column_shape = Concat <axis = 0> (num_heads_1, one)",
    "dt_to = Add(dt_start_1, num_heads_1)",
    "x, b, c = Split <axis = -1> (xbc, parts)",
    "dt_columns = Slice(dt, dt_start_1, dt_to, last)",
    "dt_biased = Add(dt_columns, dt_bias)",
    "step = Softplus(dt_biased)",
    "rate = Exp(A_log)",
    "minus_rate = Neg(rate)",
    "decay = Mul(minus_rate, step)",
    "step_column = Unsqueeze(step, last)",
    "x_heads = Reshape(x, heads_shape)",
    "value_heads = Mul(step_column, x_heads)",
    "value = Reshape(value_heads, inner_shape)",
    "b_groups = Reshape(b, groups_shape)",
    "b_repeated = Expand(b_groups, repeats)",
    "key = Reshape(b_repeated, inner_shape)",
    "c_groups = Reshape(c, groups_shape)",
    "c_repeated = Expand(c_groups, repeats)",
    "query = Reshape(c_repeated, inner_shape)",
    "scanned, present_state = com.microsoft.LinearAttention <q_num_heads: int = @num_heads, "
    'kv_num_heads: int = @num_heads, scale = 1.0, update_rule = "gated"> (query, key, value, past_state, decay)',
    "skip = Reshape(D, column_shape)",
    "skipped_heads = Mul(skip, x_heads)",
    "skipped = Reshape(skipped_heads, inner_shape)",
    "y = Add(scanned, skipped)",
]
_SELECTIVE_SIZES = [
    "one = Constant <value_ints = [1]> ()",
    "last = Constant <value_ints = [-1]> ()",
    "channels = Shape <start = 0, end = 1> (A_log)",
    "size = Shape <start = 1, end = 2> (A_log)",
]
_SELECTIVE_SCAN = [
    "dt_biased = Add(dt_columns, dt_bias)",
    "step = Softplus(dt_biased)",
    "rate = Exp(A_log)",
    "minus_rate = Neg(rate)",
    "input = Mul(step, x_columns)",
    "first_state = Squeeze(past_state, last)",
    "last_state, scanned = Scan <num_scan_inputs = 4, scan_input_axes = [1, 1, 1, 1], scan_output_axes = [1], "
    "body = token (float[batch, channels, size] state, float[batch, channels] step_now, "
    "float[batch, channels] input_now, float[batch, size] b_now, float[batch, size] c_now) "
    "=> (float[batch, channels, size] next_state, float[batch, channels] y_now) {",
    "  end = Constant <value_ints = [-1]> ()",
    "  middle = Constant <value_ints = [1]> ()",
    "  step_column = Unsqueeze(step_now, end)",
    "  exponent = Mul(step_column, minus_rate)",
    "  decay = Exp(exponent)",
    "  kept = Mul(decay, state)",
    "  input_column = Unsqueeze(input_now, end)",
    "  b_row = Unsqueeze(b_now, middle)",
    "  added = MatMul(input_column, b_row)",
    "  next_state = Add(kept, added)",
    "  c_column = Unsqueeze(c_now, end)",
    "  y_column = MatMul(next_state, c_column)",
    "  y_now = Squeeze(y_column, end)",
    "}> (first_state, step, input, b_columns, c_columns)",
    "present_state = Unsqueeze(last_state, last)",
    "skipped = Mul(x_columns, D)",
    "total = Add(scanned, skipped)",
]
_SELECTIVE_GATE = [
    "sigmoid = Sigmoid(gate_columns)",
    "silu = Mul(gate_columns, sigmoid)",
    "y = Mul(total, silu)",
]
