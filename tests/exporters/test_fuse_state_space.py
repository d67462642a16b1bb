"""Mamba-2's recurrences: kernel, function body and float64 say the same, and the passes find them and nothing else."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from families import save_tiny
from onnx import helper
from recurrences import (
    BOTH,
    F64,
    Arrays,
    assert_same_bits_on_every_isa,
    close,
    first,
    kinds,
    model_of,
    needs_library,
    session,
    weights_of,
)

from edgeslim.exporters.bundle import export_checkpoint
from edgeslim.exporters.functions import CONV, SCAN, conv_function, scan_function
from edgeslim.exporters.graph import build_graph
from edgeslim.exporters.lowering import lower
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.fuse_causal_conv import FuseCausalConv
from edgeslim.exporters.passes.fuse_state_space import FuseStateSpace
from edgeslim.exporters.plan import make_plan

CONV_SIZES = {"channels": 37, "taps": 4, "x_start": 5, "width": 50}
SCAN_SIZES = {"num_heads": 4, "head_size": 24, "state_size": 19, "groups": 2, "dt_start": 3}


def conv_model(channels: int, taps: int, x_start: int, width: int, *, activation: str = "silu") -> bytes:
    """One CausalConv node with a constant weight."""
    rng = np.random.default_rng(channels)
    weights = {"weight": rng.standard_normal((channels, 1, taps)), "bias": rng.standard_normal(channels)}
    node = helper.make_node(
        CONV,
        ["x", "weight", "bias", "past"],
        ["y", "present"],
        domain="edgeslim",
        x_start=x_start,
        activation=activation,
    )
    return model_of(node, {"x": 3, "past": 3}, {"y": 3, "present": 3}, weights, ir.to_proto(conv_function()))


def scan_model(num_heads: int, head_size: int, state_size: int, groups: int, dt_start: int) -> bytes:
    """One StateSpaceScan node with constant parameters."""
    rng = np.random.default_rng(num_heads)
    weights = {
        "dt_bias": rng.standard_normal(num_heads),
        "A_log": np.log(rng.uniform(1, 8, num_heads)),
        "D": rng.standard_normal(num_heads),
    }
    node = helper.make_node(
        SCAN,
        ["xbc", "dt", "dt_bias", "A_log", "D", "past"],
        ["y", "present"],
        domain="edgeslim",
        num_heads=num_heads,
        head_size=head_size,
        state_size=state_size,
        groups=groups,
        dt_start=dt_start,
    )
    inputs, outputs = {"xbc": 3, "dt": 3, "past": 4}, {"y": 3, "present": 4}
    return model_of(node, inputs, outputs, weights, ir.to_proto(scan_function()))


def conv_inputs(batch: int, tokens: int, channels: int, taps: int, x_start: int, width: int) -> Arrays:
    rng = np.random.default_rng(tokens)
    shapes = {"x": (batch, tokens, width), "past": (batch, channels, taps - 1)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def scan_inputs(
    batch: int, tokens: int, num_heads: int, head_size: int, state_size: int, groups: int, dt_start: int
) -> Arrays:
    rng = np.random.default_rng(tokens)
    shapes = {
        "xbc": (batch, tokens, num_heads * head_size + 2 * groups * state_size),
        "dt": (batch, tokens, dt_start + num_heads + 2),
        "past": (batch, num_heads, state_size, head_size),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def conv_reference(model: bytes, feed: Arrays, x_start: int) -> list[F64]:
    """CausalConv in float64, token by token."""
    w = weights_of(model)
    taps = w["weight"][:, 0]
    columns = feed["x"][:, :, x_start : x_start + len(taps)].astype(np.float64).transpose(0, 2, 1)
    whole = np.concatenate([feed["past"].astype(np.float64), columns], axis=2)
    sums = [(whole[:, :, t : t + taps.shape[1]] * taps).sum(-1) + w["bias"] for t in range(columns.shape[2])]
    y = np.stack(sums, axis=1)
    return [y / (1 + np.exp(-y)), whole[:, :, whole.shape[2] - taps.shape[1] + 1 :]]


def scan_reference(model: bytes, feed: Arrays, sizes: dict[str, int]) -> list[F64]:
    """StateSpaceScan in float64, token by token and head by head."""
    w, heads, size, n = weights_of(model), sizes["num_heads"], sizes["head_size"], sizes["state_size"]
    xbc, state = feed["xbc"].astype(np.float64), feed["past"].astype(np.float64).copy()
    batch, tokens, _ = xbc.shape
    inner, shared = heads * size, sizes["groups"] * n
    raw = feed["dt"][:, :, sizes["dt_start"] : sizes["dt_start"] + heads].astype(np.float64)
    step = np.log1p(np.exp(raw + w["dt_bias"]))
    y = np.empty((batch, tokens, inner))
    for i, t, h in np.ndindex(batch, tokens, heads):
        group, at = h // (heads // sizes["groups"]), slice(h * size, (h + 1) * size)
        b, c = (xbc[i, t, inner + k * shared + group * n :][:n] for k in (0, 1))
        x, dt = xbc[i, t, at], step[i, t, h]
        state[i, h] = np.exp(-dt * np.exp(w["A_log"][h])) * state[i, h] + np.outer(b, dt * x)
        y[i, t, at] = c @ state[i, h] + w["D"][h] * x
    return [y, state]


@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 131])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_convolution_is_that_of_float64(batch: int, tokens: int, library: bool) -> None:
    model, feed = conv_model(**CONV_SIZES), conv_inputs(batch, tokens, **CONV_SIZES)

    assert close(session(model, library=library).run(None, feed), conv_reference(model, feed, CONV_SIZES["x_start"]))


@needs_library
@pytest.mark.parametrize("taps", [1, 2, 3, 16])
def test_the_convolution_takes_any_number_of_taps(taps: int) -> None:
    sizes = {"channels": 600, "taps": taps, "x_start": 0, "width": 600}
    model = conv_model(**sizes)
    for tokens in (1, 9):
        feed = conv_inputs(1, tokens, **sizes)
        assert close(session(model, library=True).run(None, feed), conv_reference(model, feed, 0))


@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 131])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_scan_is_that_of_float64(batch: int, tokens: int, library: bool) -> None:
    model, feed = scan_model(**SCAN_SIZES), scan_inputs(batch, tokens, **SCAN_SIZES)

    assert close(session(model, library=library).run(None, feed), scan_reference(model, feed, SCAN_SIZES))


@needs_library
@pytest.mark.parametrize(
    ("heads", "groups", "size", "state"), [(1, 1, 1, 1), (3, 3, 64, 5), (6, 1, 80, 128), (16, 2, 64, 128)]
)
def test_the_scan_takes_other_sizes(heads: int, groups: int, size: int, state: int) -> None:
    sizes = {"num_heads": heads, "head_size": size, "state_size": state, "groups": groups, "dt_start": 0}
    model = scan_model(**sizes)
    for tokens in (1, 5):
        feed = scan_inputs(2, tokens, **sizes)
        body, kernel = (session(model, library=library).run(None, feed) for library in (False, True))
        assert close(kernel, scan_reference(model, feed, sizes))
        assert close(body, kernel)


def in_pieces(run: Any, feed: dict[str, Any], ends: tuple[int, ...]) -> list[Any]:
    """Return what `run` gives for the rows of `feed` up to each of `ends` in turn, joined, and the last state."""
    rows, state = [name for name in feed if name != "past"], feed["past"]
    pieces = []
    for begin, end in itertools.pairwise((0, *ends)):
        y, state = run.run(None, {**{name: feed[name][:, begin:end] for name in rows}, "past": state})
        pieces.append(y)
    return [np.concatenate(pieces, axis=1), state]


@needs_library
def test_a_convolution_in_pieces_gives_the_bits_of_the_whole() -> None:
    run, feed = session(conv_model(**CONV_SIZES), library=True), conv_inputs(2, 70, **CONV_SIZES)
    for found, whole in zip(in_pieces(run, feed, (1, 2, 9, 70)), run.run(None, feed), strict=True):
        assert np.array_equal(found, whole)


@needs_library
def test_a_scan_in_pieces_gives_the_whole_and_its_bits_where_pieces_are_those_of_the_kernel() -> None:
    run, feed = session(scan_model(**SCAN_SIZES), library=True), scan_inputs(2, 150, **SCAN_SIZES)
    whole = run.run(None, feed)
    for found, expected in zip(in_pieces(run, feed, (64, 128, 150)), whole, strict=True):
        assert np.array_equal(found, expected)
    for found, expected in zip(in_pieces(run, feed, (1, 2, 9, 33, 150)), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@needs_library
def test_the_state_may_be_written_over_the_one_before() -> None:
    models = {"conv": conv_model(**CONV_SIZES), "scan": scan_model(**SCAN_SIZES)}
    feeds = {"conv": conv_inputs(2, 3, **CONV_SIZES), "scan": scan_inputs(2, 3, **SCAN_SIZES)}
    for kind, model in models.items():
        run, feed = session(model, library=True), feeds[kind]
        expected = run.run(None, feed)
        state = onnxruntime.OrtValue.ortvalue_from_numpy(feed["past"])
        binding = run.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(
                name, state if name == "past" else onnxruntime.OrtValue.ortvalue_from_numpy(array)
            )
        binding.bind_output("y")
        binding.bind_ortvalue_output("present", state)
        run.run_with_iobinding(binding)

        assert np.array_equal(binding.get_outputs()[0].numpy(), expected[0])
        assert np.array_equal(state.numpy(), expected[1])


@needs_library
def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    wide = {"num_heads": 2, "head_size": 80, "state_size": 16, "groups": 1, "dt_start": 0}
    large = {"num_heads": 16, "head_size": 64, "state_size": 128, "groups": 1, "dt_start": 0}  # streamed past caches
    cases = []
    for tokens in (1, 2, 7, 64):
        cases.append((conv_model(**CONV_SIZES), conv_inputs(2, tokens, **CONV_SIZES)))
        cases += [(scan_model(**sizes), scan_inputs(2, tokens, **sizes)) for sizes in (SCAN_SIZES, wide, large)]

    assert_same_bits_on_every_isa(cases, tmp_path)


@needs_library
@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("conv", "x", (1, 3, 41)),
        ("conv", "past", (1, 37, 4)),
        ("conv", "past", (2, 37, 3)),
        ("scan", "xbc", (1, 3, 171)),
        ("scan", "dt", (1, 3, 6)),
        ("scan", "dt", (1, 2, 9)),
        ("scan", "past", (1, 4, 24, 19)),
        ("scan", "past", (2, 4, 19, 24)),
    ],
)
def test_an_input_of_another_shape_is_an_error(kind: str, name: str, shape: tuple[int, ...]) -> None:
    model = conv_model(**CONV_SIZES) if kind == "conv" else scan_model(**SCAN_SIZES)
    feed = conv_inputs(1, 3, **CONV_SIZES) if kind == "conv" else scan_inputs(1, 3, **SCAN_SIZES)

    with pytest.raises(Exception, match=rf"edgeslim::\w+: .*{name.split('_')[0]}.* must have"):
        session(model, library=True).run(None, {**feed, name: np.zeros(shape, np.float32)})


@needs_library
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("conv", {"x_start": -1}, "x_start must not be negative"),
        ("conv", {"activation": "relu"}, "activation must be silu or none"),
        ("conv", {"taps": 17}, "weight must have shape"),
        ("scan", {"num_heads": 0, "groups": 0}, "must be in"),
        ("scan", {"groups": 3}, "multiple of groups"),
        ("scan", {"state_size": 1 << 40}, "must be in"),
        ("scan", {"dt_start": -1}, "dt_start must not be negative"),
    ],
)
def test_attributes_that_make_no_sense_are_an_error_at_load(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        if kind == "conv":
            session(conv_model(**{**CONV_SIZES, **change}), library=True)
        else:
            session(scan_model(**{**SCAN_SIZES, **change}), library=True)


@pytest.fixture
def mamba(checkpoint: Callable[[str], Path]) -> ir.Model:
    """The graph of a tiny Mamba-2 of three layers and two groups, before any lowering."""
    return build_graph(checkpoint("mamba2"))


def fused(model: ir.Model) -> Counter[str]:
    run_passes(model, [FuseCausalConv(), FuseStateSpace()])
    return kinds(model)


def test_two_nodes_take_the_place_of_a_layer_s_recurrences(mamba: ir.Model) -> None:
    found = fused(mamba)

    assert found[CONV] == found[SCAN] == 3
    gone = {"CausalConvWithState", "LinearAttention", "Transpose", "Softplus", "Exp", "Neg", "Unsqueeze", "Expand"}
    assert not gone & set(found)
    assert set(mamba.graph.opset_imports) == {"", "com.microsoft", "edgeslim"}
    conv, scan = first(mamba, CONV), first(mamba, SCAN)
    assert conv.inputs[0] is scan.inputs[1], "both read the columns of one product"
    assert (conv.attributes.get_int("x_start"), scan.attributes.get_int("dt_start")) == (128, 128 + 192)
    assert scan.attributes.get_int("groups") == 2
    again = kinds(mamba)
    assert fused(mamba) == again


@pytest.mark.parametrize("groups", [1, 8])
def test_one_group_and_a_group_a_head_fuse_too_and_no_split_stays(groups: int, tmp_path: Path) -> None:
    model = build_graph(save_tiny(tmp_path / "checkpoint", "mamba2", n_groups=groups, tokenizer=False))
    lower(model, make_plan("int8", "kernel", library=True), tmp_path / "packed")

    assert kinds(model)[SCAN] == kinds(model)[CONV] == 3
    assert groups > 1 or kinds(model)["Split"] == 0


def _other_activation(model: ir.Model) -> None:
    first(model, "CausalConvWithState").attributes["activation"] = ir.AttrString("activation", "relu")


def _read_twice(model: ir.Model) -> None:
    model.graph.outputs.append(first(model, "CausalConvWithState").outputs[0])


def _other_turn(model: ir.Model) -> None:
    first(model, "Transpose").attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2])


def _no_past(model: ir.Model) -> None:
    first(model, "CausalConvWithState").replace_input_with(3, None)


@pytest.mark.parametrize("change", [_other_activation, _read_twice, _other_turn, _no_past])
def test_a_convolution_that_differs_is_left_alone(mamba: ir.Model, change: Callable[[ir.Model], None]) -> None:
    change(mamba)
    found = fused(mamba)

    assert found[CONV] == found["CausalConvWithState"] + 1 == 2
    assert found[SCAN] == 3


def _other_scale(model: ir.Model) -> None:
    first(model, "LinearAttention").attributes["scale"] = ir.AttrFloat32("scale", 0.5)


def _other_rule(model: ir.Model) -> None:
    first(model, "LinearAttention").attributes["update_rule"] = ir.AttrString("update_rule", "linear")


def _with_beta(model: ir.Model) -> None:
    node = first(model, "LinearAttention")
    node.resize_inputs(6)
    node.replace_input_with(5, node.inputs[4])


def _b_and_c_exchanged(model: ir.Model) -> None:
    node = first(model, "LinearAttention")
    query, key = node.inputs[:2]
    node.replace_input_with(0, key)
    node.replace_input_with(1, query)


def _clipped_step(model: ir.Model) -> None:
    node = first(model, "Softplus")
    clip = ir.Node("", "Clip", [node.outputs[0]])
    users = [(use.node, use.idx) for use in node.outputs[0].uses() if use.node is not clip]
    model.graph.insert_after(node, clip)
    for user, index in users:
        user.replace_input_with(index, clip.outputs[0])


def _decay_of_another_step(model: ir.Model) -> None:
    first(model, "LinearAttention").replace_input_with(4, first(model, "Softplus").outputs[0])


def _step_is_an_output(model: ir.Model) -> None:
    model.graph.outputs.append(first(model, "Softplus").outputs[0])


def _no_skip(model: ir.Model) -> None:
    first(model, "LinearAttention").outputs[0].uses()[0].node.op_type = "Sub"


def _bias_of_one(model: ir.Model) -> None:
    bias = next(v for v in first(model, "Softplus").inputs[0].producer().inputs if v.const_value is not None)
    bias.const_value = ir.tensor(np.ones(1, np.float32), name=bias.name)


@pytest.mark.parametrize(
    "change",
    [
        _other_scale,
        _other_rule,
        _with_beta,
        _b_and_c_exchanged,
        _clipped_step,
        _decay_of_another_step,
        _step_is_an_output,
        _no_skip,
        _bias_of_one,
    ],
)
def test_a_recurrence_that_differs_is_left_alone(mamba: ir.Model, change: Callable[[ir.Model], None]) -> None:
    change(mamba)
    found = fused(mamba)

    assert found[SCAN] == 2
    assert found["LinearAttention"] == 1
    assert found[CONV] == 3


@needs_library
@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_whole_model_agrees_with_transformers(weights: Any, groups: int, tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "mamba2", n_groups=groups)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    manifest = export_checkpoint(checkpoint, bundle, weights=weights, lowering="kernel")  # raises where they differ

    assert max(manifest.parity["max_abs_error"].values()) < 1e-4
    assert {CONV, SCAN} <= {node.op_type for node in ir.load(bundle / "model.onnx").graph}
