"""Operators of ours: function body, kernel and numpy say the same, for every form and every optional input."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeslim.exporters.functions import (
    FUNCTIONS,
    GATHER,
    LINEAR,
    LINEAR_INPUTS,
    OPTIONAL,
    LinearVariant,
    attention_function,
    form_name,
    gather_function,
    linear_function,
)
from edgeslim.exporters.packed import Form, Packed, pack, unpack
from edgeslim.runtime.library import find_library

LIBRARY = find_library()
needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="no kernel library: edgeslim was installed without a compiler"
)
TOLERANCE = 2e-6
"""Relative to the largest output: float32 sums in another order."""
FORMS = [
    Form(layout="dense", bits=8),
    Form(layout="bitmap", bits=8),
    Form(layout="nm", bits=8, pattern=(2, 4)),
    Form(layout="dense", bits=4, group=64),
    Form(layout="bitmap", bits=4, group=32),
    Form(layout="nm", bits=4, group=64, pattern=(1, 4)),
    Form(layout="dense", bits=3, group=64),
    Form(layout="bitmap", bits=3, group=64),
    Form(layout="nm", bits=3, group=32, pattern=(2, 4)),
    Form(layout="dense", bits=16),
    Form(layout="bitmap", bits=16),
    Form(layout="bitmap", bits=32),
    Form(layout="nm", bits=32, pattern=(1, 2)),
]
ALL = frozenset(OPTIONAL)
F32 = npt.NDArray[np.float32]


def weight_of(form: Form, n: int, k: int) -> F32:
    rng = np.random.default_rng(n * k)
    weight = rng.standard_normal((n, k)).astype(np.float32)
    if form.layout == "bitmap":
        weight[rng.random((n, k)) < 0.5] = 0
    if form.pattern:
        groups = weight.reshape(-1, form.pattern[1])
        groups[np.argsort(np.argsort(-np.abs(groups), axis=1), axis=1) >= form.pattern[0]] = 0
    return weight


def operands(tokens: int, n: int, k: int) -> dict[str, F32]:
    rng = np.random.default_rng(tokens)
    shapes = {"x": (tokens, k), "bias": (n,), "gate": (tokens, k), "norm": (k,), "residual": (tokens, n)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model_of(packed: Packed, variant: LinearVariant) -> bytes:
    """A PackedLinear and a PackedGather over one matrix: x, gate?, residual?, bias?, norm?, ids -> y, rows."""
    constants = [numpy_helper.from_array(array, name) for name, array in packed.tensors.items()]
    present = {"x", *packed.tensors, *variant.optional}
    attributes = variant.form.attributes(packed.n, packed.k)
    linear = helper.make_node(
        LINEAR,
        [name if name in present else "" for name in LINEAR_INPUTS],
        ["y"],
        domain="edgeslim",
        overload=variant.overload,
        activations=variant.activations,
        epsilon=1e-5,
        x_start=0,
        gate_start=0,
        **({"function": variant.function} if variant.function else {}),
        **attributes,
    )
    tensors = [name if name in packed.tensors else "" for name in ("values", "scales", "masks", "offsets")]
    gather = helper.make_node(
        GATHER, ["ids", *tensors], ["rows"], domain="edgeslim", overload=form_name(variant.form), **attributes
    )
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *sorted(variant.optional))]
    inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["i"]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "rows")]
    graph = helper.make_graph([linear, gather], "test", inputs, outputs, constants)
    functions = [ir.to_proto(linear_function(variant)), ir.to_proto(gather_function(variant.form))]
    return serialized(graph, functions)


def serialized(graph: Any, functions: list[Any]) -> bytes:
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("edgeslim", 1), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=11)
    content: bytes = model.SerializeToString()
    return content


def session(model: bytes, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def exact(function: str, x: F32) -> npt.NDArray[np.float64]:
    """The function of this name, by torch in float64."""
    t, f = torch.from_numpy(x).double(), torch.nn.functional
    results = {
        "silu": f.silu(t),
        "gelu": f.gelu(t),
        "gelu_tanh": f.gelu(t, approximate="tanh"),
        "relu": f.relu(t),
        "relu_squared": f.relu(t).square(),
    }
    return results[function].numpy()


def multiplied(values: dict[str, F32], variant: LinearVariant) -> npt.NDArray[np.float64]:
    """What PackedLinear multiplies its matrix by, in float64."""
    t = values["x"].astype(np.float64)
    if "gate" in variant.optional:
        t = t * exact(variant.function or "silu", values["gate"])
    elif variant.function:
        t = exact(variant.function, values["x"])
    if "norm" in variant.optional:
        t = t / np.sqrt((t**2).mean(axis=-1, keepdims=True) + 1e-5) * values["norm"]
    return t


def reference(values: dict[str, F32], weight: F32, variant: LinearVariant) -> npt.NDArray[np.float64]:
    """PackedLinear in float64."""
    y = multiplied(values, variant) @ weight.T.astype(np.float64)
    return (
        y
        + (values["bias"] if "bias" in variant.optional else 0)
        + (values["residual"] if "residual" in variant.optional else 0)
    )


@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("shape", [(1, 4, 1), (33, 68, 5), (64, 128, 13)])
def test_a_body_with_float_activations_is_the_dense_product(form: Form, shape: tuple[int, int, int]) -> None:
    n, k, tokens = shape
    packed = pack(weight_of(form, n, k), form)
    variant = LinearVariant(form=form, activations="float", optional=ALL)
    values = operands(tokens, n, k)
    ids = np.arange(n)[::-1].copy()
    y, rows = session(model_of(packed, variant), library=False).run(None, {**values, "ids": ids})

    expected = reference(values, unpack(packed), variant)
    assert np.abs(y - expected).max() <= 10 * TOLERANCE * max(1, np.abs(expected).max())
    assert np.array_equal(rows, unpack(packed)[ids])


@needs_library
@pytest.mark.parametrize("form", FORMS, ids=form_name)
@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("optional", [frozenset(), ALL], ids=["plain", "all-operands"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_kernel_and_body_agree(form: Form, activations: str, optional: frozenset[str], tokens: int) -> None:
    n, k = 50, 132
    packed = pack(weight_of(form, n, k), form)
    variant = LinearVariant(form=form, activations=activations, optional=optional)
    values = {name: array for name, array in operands(tokens, n, k).items() if name in {"x", *optional}}
    feed = {**values, "ids": np.array([0, n - 1, 17])}
    body, kernel = (session(model_of(packed, variant), library=library).run(None, feed) for library in (False, True))

    # A norm in another order of sums may move an activation to the next of its 255 steps: one step of one input.
    step = (
        2 * np.abs(unpack(packed)).max() * np.abs(values["x"]).max() / 127 if optional and activations == "int8" else 0
    )
    assert np.abs(kernel[0] - body[0]).max() <= TOLERANCE * max(1, np.abs(body[0]).max()) * 4 + step
    assert np.array_equal(kernel[1], body[1])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("optional", [frozenset(), ALL, ALL - {"gate"}], ids=["plain", "all-operands", "no-gate"])
def test_a_function_is_of_the_gate_or_of_x_in_body_and_kernel(function: str, optional: frozenset[str]) -> None:
    n, k, tokens = 50, 132, 5
    for form, activations in ((Form(layout="bitmap", bits=32), "float"), (Form(layout="dense", bits=8), "int8")):
        packed = pack(weight_of(form, n, k), form)
        variant = LinearVariant(form=form, activations=activations, optional=optional, function=function)
        values = {name: array for name, array in operands(tokens, n, k).items() if name in {"x", *optional}}
        values["gate" if "gate" in optional else "x"] *= 3  # from where a function bends to where it does not
        expected = reference(values, unpack(packed), variant)
        half_a_step = 0.501 / 127 * np.abs(multiplied(values, variant)).max() if activations == "int8" else 0
        rounding = half_a_step * np.abs(unpack(packed)).sum(axis=1).max()
        for library in (False, True) if LIBRARY is not None else (False,):
            feed = {**values, "ids": np.array([0])}
            y = session(model_of(packed, variant), library=library).run(None, feed)[0]
            assert np.abs(y - expected).max() <= rounding + 10 * TOLERANCE * max(1, np.abs(expected).max())


def test_a_gate_by_itself_goes_through_silu_and_its_overload_names_no_function() -> None:
    form = Form(layout="dense", bits=8)
    gated = LinearVariant(form=form, optional=frozenset({"gate"}))
    by_gelu = LinearVariant(form=form, optional=frozenset({"gate"}), function="gelu_tanh")
    kinds = [[node.op_type for node in linear_function(variant)] for variant in (gated, by_gelu)]

    assert gated.overload == "dense_int8_int8_gate" and by_gelu.overload == "dense_int8_int8_gate_gelu_tanh"
    assert "Sigmoid" in kinds[0] and "Gelu" not in kinds[0]
    assert "Gelu" in kinds[1] and "Sigmoid" not in kinds[1]


@needs_library
@pytest.mark.parametrize("function", ["gelu_new", "", "a name that is longer than any buffer for a name is"])
def test_an_unknown_function_is_an_error_at_load(function: str) -> None:
    form = Form(layout="dense", bits=8)
    variant = LinearVariant(form=form, function="gelu")
    model = onnx.load_from_string(model_of(pack(weight_of(form, 16, 16), form), variant))
    next(a for a in model.graph.node[0].attribute if a.name == "function").s = function.encode()
    with pytest.raises(Exception, match="function must be silu, gelu, gelu_tanh, relu or relu_squared"):
        session(model.SerializeToString(), library=True)


@needs_library
@pytest.mark.parametrize("damage", ["offsets", "masks", "values", "attribute"])
def test_a_damaged_matrix_is_an_error_at_load_and_no_crash(damage: str) -> None:
    form = Form(layout="bitmap", bits=8)
    packed = pack(weight_of(form, 33, 68), form)
    if damage == "offsets":
        assert packed.offsets is not None
        packed.offsets[1] += 1 << 40
    elif damage == "masks":
        assert packed.masks is not None
        packed.masks[:] = 255
    model = onnx.load_from_string(model_of(packed, LinearVariant(form=form)))
    if damage == "values":
        shortened = numpy_helper.from_array(packed.values[:100], "values")
        model.graph.initializer[[t.name for t in model.graph.initializer].index("values")].CopyFrom(shortened)
    elif damage == "attribute":
        next(a for a in model.graph.node[0].attribute if a.name == "n").i = 1 << 40
    with pytest.raises(Exception, match=r"edgeslim::Packed"):
        session(model.SerializeToString(), library=True)


ATTENTION_NAMES = ("qkv", "", "", "past_key", "past_value", "lengths", "total", "cos", "sin")
_KINDS = {"lengths": TensorProto.INT32, "total": TensorProto.INT32, "positions": TensorProto.INT64}


def attention_model(functions: list[ir.Function], *more: str, **attributes: Any) -> bytes:
    """A GroupQueryAttention of ours with inputs `more` after cos and sin; its body is the first of `functions`."""
    names = [*ATTENTION_NAMES, *more]
    overload = functions[0].overload if functions else ""
    attributes = {"scale": 0.0, "do_rotary": 1, "rotary_interleaved": 0, "local_window_size": -1, **attributes}
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "key", "value"], domain="edgeslim", overload=overload, **attributes
    )
    there = [name for name in names if name]
    inputs = [helper.make_tensor_value_info(name, _KINDS.get(name, TensorProto.FLOAT), None) for name in there]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "key", "value")]
    graph = helper.make_graph([node], "test", inputs, outputs)
    return serialized(graph, [ir.to_proto(function) for function in functions])


@needs_library
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "rotary", "window", "interleaved", "softcap"),
    [
        (4, 2, 16, 16, -1, 0, 0.0),
        (15, 5, 64, 64, -1, 0, 0.0),
        (2, 1, 80, 32, -1, 0, 0.0),
        (4, 4, 16, 16, 5, 0, 0.0),
        (4, 2, 32, 32, 7, 1, 0.0),
        (4, 2, 32, 32, -1, 0, 1.5),
        (2, 1, 80, 32, 9, 0, 0.4),
    ],
)
def test_attention_of_ours_is_that_of_com_microsoft(
    heads: int, kv_heads: int, size: int, rotary: int, window: int, interleaved: int, softcap: float
) -> None:
    model = attention_model(
        [attention_function(capped=softcap != 0)],
        num_heads=heads,
        kv_num_heads=kv_heads,
        do_rotary=1,
        rotary_interleaved=interleaved,
        local_window_size=window,
        **({"softcap": softcap} if softcap else {}),
    )
    body, kernel = session(model, library=False), session(model, library=True)
    rng, angles = np.random.default_rng(0), np.outer(np.arange(300), 0.9 ** np.arange(rotary // 2)).astype(np.float32)
    for batch, past, tokens, room in [(1, 0, 1, 0), (2, 0, 40, 0), (2, 3, 1, 0), (1, 7, 20, 0), (1, 33, 3, 64)]:
        cache = (batch, kv_heads, room or past, size)
        feed = {
            "qkv": rng.standard_normal((batch, tokens, (heads + 2 * kv_heads) * size)).astype(np.float32),
            "past_key": rng.standard_normal(cache).astype(np.float32),
            "past_value": rng.standard_normal(cache).astype(np.float32),
            "lengths": np.full(batch, past + tokens - 1, np.int32),
            "total": np.array(past + tokens, np.int32),
            "cos": np.cos(angles),
            "sin": np.sin(angles),
        }
        for found, expected in zip(kernel.run(None, feed), body.run(None, feed), strict=True):
            seen = slice(None, past + tokens) if found.ndim == 4 else slice(None)
            assert np.abs(found[..., seen, :] - expected[..., seen, :]).max() < 5e-6


EPSILON = 0.01  # large enough that a norm without it differs


def attended(feed: dict[str, Any], heads: int, kv_heads: int, window: int, norms: dict[str, F32]) -> list[torch.Tensor]:
    """Attention by torch in float64, of tokens with rotated halves: y, keys and values of the new tokens."""
    given = {name: torch.from_numpy(array).double() for name, array in {**feed, **norms}.items() if array.ndim}
    size, past, tokens = given["past_key"].shape[3], given["past_key"].shape[2], given["qkv"].shape[1]
    parts = list(given["qkv"].split([heads * size, kv_heads * size, kv_heads * size], -1))
    positions = torch.from_numpy(feed["positions"]) if "positions" in feed else past + torch.arange(tokens)[None]
    cos, sin = (given[name][positions][:, None] for name in ("cos", "sin"))  # [B, 1, T, rotary / 2]
    half = cos.shape[-1]
    for index, (norm, count) in enumerate((("query_norm", heads), ("key_norm", kv_heads))):
        x = parts[index]
        if norm in given:
            pieces = x.unflatten(-1, (-1, len(given[norm])))
            x = torch.nn.functional.rms_norm(pieces, pieces.shape[-1:], given[norm], EPSILON).flatten(-2)
        x = x.unflatten(-1, (count, size)).transpose(1, 2)
        a, b, rest = x.split([half, half, size - 2 * half], -1)
        parts[index] = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
    query, key, value = parts[0], parts[1], parts[2].unflatten(-1, (kv_heads, size)).transpose(1, 2)
    keys, values = (torch.cat([given[f"past_{name}"], x], 2) for name, x in (("key", key), ("value", value)))
    distance = past + torch.arange(tokens)[:, None] - torch.arange(past + tokens)
    seen = (distance >= 0) & ((distance < window) | (window < 0))
    y = torch.nn.functional.scaled_dot_product_attention(query, keys, values, seen, enable_gqa=True)
    return [y.transpose(1, 2).flatten(-2), key, value]


def attention_feed(batch: int, past: int, tokens: int, heads: int, kv_heads: int, size: int) -> dict[str, Any]:
    rng, angles = np.random.default_rng(past + tokens), np.outer(np.arange(90), 0.9 ** np.arange(size // 2))
    cache = (batch, kv_heads, past, size)
    return {
        "qkv": rng.standard_normal((batch, tokens, (heads + 2 * kv_heads) * size)).astype(np.float32),
        "past_key": rng.standard_normal(cache).astype(np.float32),
        "past_value": rng.standard_normal(cache).astype(np.float32),
        "lengths": np.full(batch, past + tokens - 1, np.int32),
        "total": np.array(past + tokens, np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["of-a-head", "of-all-heads"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "window"),
    [(4, 2, 16, -1), (6, 3, 64, -1), (4, 4, 48, 5), (3, 1, 18, -1), (6, 2, 37, 7), (2, 1, 3, -1)],
)
def test_attention_with_norms_is_that_of_torch(
    heads: int, kv_heads: int, size: int, window: int, wide: bool, positions: bool
) -> None:
    function = attention_function(positions=positions, norms=True)
    more = ("positions" if positions else "", "query_norm", "key_norm")
    sizes = {"num_heads": heads, "kv_num_heads": kv_heads, "local_window_size": window, "norm_epsilon": EPSILON}
    model = attention_model([function], *more, **sizes)
    rng = np.random.default_rng(size)
    norms = {
        name: rng.standard_normal(size * (count if wide else 1)).astype(np.float32)
        for name, count in (("query_norm", heads), ("key_norm", kv_heads))
    }
    sessions = [session(model, library=True)] if LIBRARY is not None else []
    if size % 8 == 0:  # what com.microsoft's operator asks of a head
        sessions.append(session(model, library=False))
    if not sessions:
        pytest.skip("no kernel library: edgeslim was installed without a compiler")
    for batch, past, tokens in [(1, 0, 1), (2, 3, 1), (1, 33, 3), (2, 0, 40), (1, 7, 20)]:
        feed = attention_feed(batch, past, tokens, heads, kv_heads, size)
        if positions:
            feed["positions"] = np.sort(rng.permuted(np.tile(np.arange(90), (batch, 1)), axis=1)[:, :tokens])
        expected = attended(feed, heads, kv_heads, window, norms)
        for one in sessions:
            y, key, value = one.run(None, {**feed, **norms})
            found = [y, key[:, :, past : past + tokens], value[:, :, past : past + tokens]]
            for a, b in zip(found, expected, strict=True):
                assert np.abs(a - b.numpy()).max() < 5e-6


@needs_library
@pytest.mark.parametrize("name", ["query_norm", "key_norm"])
def test_either_norm_may_be_alone(name: str) -> None:
    more = ("", "query_norm" if name == "query_norm" else "", "key_norm" if name == "key_norm" else "")
    one = session(attention_model([], *more, num_heads=4, kv_num_heads=2, norm_epsilon=EPSILON), library=True)
    norms = {name: np.linspace(-2, 2, 16, dtype=np.float32)}
    for past, tokens in [(0, 20), (20, 1)]:
        feed = attention_feed(1, past, tokens, 4, 2, 16)
        found = one.run(None, {**feed, **norms})[0]
        assert np.abs(found - attended(feed, 4, 2, -1, norms)[0].numpy()).max() < 5e-6


@needs_library
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("query_norm", (15,)),
        ("query_norm", (32,)),
        ("query_norm", (0,)),
        ("query_norm", ()),
        ("query_norm", (1, 16)),
        ("key_norm", (64,)),
        ("key_norm", (16, 2)),
    ],
)
def test_norms_of_other_sizes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    one = session(attention_model([], "", "query_norm", "key_norm", num_heads=4, kv_num_heads=2), library=True)
    norms = {
        "query_norm": np.ones(16, np.float32),
        "key_norm": np.ones(16, np.float32),
        name: np.ones(shape, np.float32),
    }
    expected = f"{name} must have one dimension of 16 or {64 if name == 'query_norm' else 32} entries"
    for tokens in (1, 20):
        with pytest.raises(Exception, match=expected):
            one.run(None, {**attention_feed(1, 0, tokens, 4, 2, 16), **norms})
