"""Mamba-1's recurrence: kernel, function body and float64 say the same, and the pass finds it and nothing else."""

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
from edgeslim.exporters.functions import GATED, SELECTIVE_SCAN, selective_scan_function
from edgeslim.exporters.graph import build_graph
from edgeslim.exporters.lowering import lower
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.fuse_selective_scan import FuseSelectiveScan
from edgeslim.exporters.passes.loop_tokens import LoopTokens
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.exporters.plan import make_plan
from edgeslim.runtime.manifest import Manifest

SIZES = {"channels": 37, "state": 19}
WIDE = {"channels": 96, "state": 16}
STARTS = {"x_start": 2, "dt_start": 1, "b_start": 3, "c_start": 0, "gate_start": 5}
FAMILIES = ("mamba", "falcon_mamba", "jamba")


def scan_model(channels: int, state: int, *, gated: bool = True) -> bytes:
    """One SelectiveScan node with constant parameters."""
    rng = np.random.default_rng(channels)
    weights = {
        "dt_bias": rng.standard_normal(channels),
        "A_log": np.log(rng.uniform(0.5, 16, (channels, state))),
        "D": rng.standard_normal(channels),
    }
    inputs = {"x": 3, "dt": 3, "b": 3, "c": 3, "past": 4, **({"gate": 3} if gated else {})}
    node = helper.make_node(
        SELECTIVE_SCAN,
        ["x", "dt", "dt_bias", "A_log", "D", "b", "c", "past", *(["gate"] if gated else [])],
        ["y", "present"],
        domain="edgeslim",
        overload=GATED if gated else "",
        **STARTS,
    )
    function = ir.to_proto(selective_scan_function(gated=gated))
    return model_of(node, inputs, {"y": 3, "present": 4}, weights, function)


def scan_inputs(batch: int, tokens: int, channels: int, state: int, *, gated: bool = True) -> Arrays:
    rng = np.random.default_rng(tokens)
    columns = {"x": channels, "dt": channels, "b": state, "c": state, **({"gate": channels} if gated else {})}
    shapes = {name: (batch, tokens, STARTS[f"{name}_start"] + count + 1) for name, count in columns.items()}
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**feed, "past": rng.standard_normal((batch, channels, state, 1)).astype(np.float32)}


def scan_reference(model: bytes, feed: Arrays) -> list[F64]:
    """SelectiveScan in float64, token by token."""
    w = weights_of(model)
    channels, size = w["A_log"].shape

    def columns(name: str) -> F64:
        start = STARTS[f"{name}_start"]
        part: F64 = feed[name][:, :, start : start + (size if name in "bc" else channels)].astype(np.float64)
        return part

    x, raw, b, c = (columns(name) for name in ("x", "dt", "b", "c"))
    step = np.log1p(np.exp(raw + w["dt_bias"]))
    state, y = feed["past"][..., 0].astype(np.float64), np.empty_like(x)
    for t in range(x.shape[1]):
        decay = np.exp(-step[:, t, :, None] * np.exp(w["A_log"]))
        state = decay * state + (step[:, t] * x[:, t])[:, :, None] * b[:, t, None]
        y[:, t] = (state * c[:, t, None]).sum(-1) + w["D"] * x[:, t]
    if "gate" in feed:
        y *= columns("gate") / (1 + np.exp(-columns("gate")))
    return [y, state[..., None]]


@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 7, 131])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_scan_is_that_of_float64(batch: int, tokens: int, gated: bool, library: bool) -> None:
    for sizes in (SIZES, WIDE):
        model, feed = scan_model(**sizes, gated=gated), scan_inputs(batch, tokens, **sizes, gated=gated)

        assert close(session(model, library=library).run(None, feed), scan_reference(model, feed))


@needs_library
@pytest.mark.parametrize(("channels", "state"), [(1, 1), (16, 16), (130, 8), (64, 64), (7, 256), (900, 16)])
def test_the_scan_takes_other_sizes(channels: int, state: int) -> None:
    model = scan_model(channels, state)
    for tokens in (1, 5):
        feed = scan_inputs(2, tokens, channels, state)
        body, kernel = (session(model, library=library).run(None, feed) for library in (False, True))
        assert close(kernel, scan_reference(model, feed))
        assert close(body, kernel)


@needs_library
def test_a_prompt_in_pieces_gives_the_bits_of_the_whole() -> None:
    run, feed = session(scan_model(**WIDE), library=True), scan_inputs(2, 70, **WIDE)
    whole, state, pieces = run.run(None, feed), feed["past"], []
    for begin, end in ((0, 1), (1, 2), (2, 9), (9, 70)):
        rows = {name: array[:, begin:end] for name, array in feed.items() if name != "past"}
        y, state = run.run(None, {**rows, "past": state})
        pieces.append(y)

    assert np.array_equal(np.concatenate(pieces, axis=1), whole[0])
    assert np.array_equal(state, whole[1])


@needs_library
def test_the_state_may_be_written_over_the_one_before() -> None:
    run, feed = session(scan_model(**WIDE), library=True), scan_inputs(2, 3, **WIDE)
    expected = run.run(None, feed)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    binding = run.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    binding.bind_ortvalue_output("present", values["past"])
    run.run_with_iobinding(binding)

    assert np.array_equal(binding.get_outputs()[0].numpy(), expected[0])
    assert np.array_equal(values["past"].numpy(), expected[1])


@needs_library
def test_steps_without_bounds_stay_numbers_and_what_is_none_stays_none() -> None:
    run, feed = session(scan_model(**WIDE), library=True), scan_inputs(1, 3, **WIDE)
    start = STARTS["dt_start"]
    feed["dt"][0, 0, start : start + 4] = [-1e30, -200, 200, 1e30]
    feed["x"][0, 0, 5] = np.nan
    y, state = run.run(None, feed)

    assert np.isfinite(y[0, 0, [0, 1, 2]]).all()
    channel = 5 - STARTS["x_start"]
    assert np.isnan(y[0, :, channel]).all() and np.isnan(state[0, channel]).all()
    assert np.isfinite(np.delete(y, [channel], axis=2)).all()


@needs_library
def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    cases = [(scan_model(**s), scan_inputs(2, tokens, **s)) for tokens in (1, 2, 70) for s in (SIZES, WIDE)]

    assert_same_bits_on_every_isa(cases, tmp_path)


@needs_library
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x", (1, 3, 38)),
        ("dt", (1, 2, 40)),
        ("b", (1, 3, 21)),
        ("c", (2, 3, 20)),
        ("gate", (1, 3, 41)),
        ("past", (1, 37, 19, 2)),
        ("past", (1, 19, 37, 1)),
    ],
)
def test_an_input_of_another_shape_is_an_error(name: str, shape: tuple[int, ...]) -> None:
    feed = {**scan_inputs(1, 3, **SIZES), name: np.zeros(shape, np.float32)}

    with pytest.raises(Exception, match=rf"edgeslim::SelectiveScan: {name}.* must have"):
        session(scan_model(**SIZES), library=True).run(None, feed)


@needs_library
@pytest.mark.parametrize(
    ("change", "message"),
    [({"dt_start": -1}, "dt_start must not be negative"), ({"gate_start": -2}, "gate_start must not be negative")],
)
def test_attributes_that_make_no_sense_are_an_error_at_load(change: dict[str, int], message: str) -> None:
    model = ir.from_proto(helper.onnx.load_from_string(scan_model(**SIZES)))
    for name, value in change.items():
        model.graph[0].attributes[name] = ir.AttrInt64(name, value)

    with pytest.raises(Exception, match=message):
        session(ir.to_proto(model).SerializeToString(), library=True)


@pytest.fixture
def mamba(checkpoint: Callable[[str], Path]) -> ir.Model:
    """The graph of a tiny Mamba of three layers, before any lowering."""
    return build_graph(checkpoint("mamba"))


@pytest.mark.parametrize(("family", "count"), [("mamba", 3), ("falcon_mamba", 3), ("jamba", 2)])
def test_one_node_takes_the_place_of_a_layer_s_recurrence(
    family: str, count: int, checkpoint: Callable[[str], Path]
) -> None:
    model = build_graph(checkpoint(family))
    fuse = FuseSelectiveScan()
    run_passes(model, [fuse])
    found = kinds(model)

    assert found[SELECTIVE_SCAN] == count and fuse.unlike == {}
    assert not {"LinearAttention", "Softplus", "Exp", "Neg", "Unsqueeze", "Expand", "Reshape", "Sigmoid"} & set(
        found - Counter({"Sigmoid": found["Sigmoid"]} if family == "jamba" else {})
    )
    scan = first(model, SELECTIVE_SCAN)
    assert scan.overload == GATED, "nothing but the gate reads the scan"
    assert (scan.inputs[5] is scan.inputs[6]) == (family == "mamba"), "b and c are columns of one product, or normed"
    run_passes(model, [FuseSelectiveScan()])
    assert kinds(model) == found


def test_with_packed_products_gate_and_bias_are_theirs_and_no_split_stays(mamba: ir.Model, tmp_path: Path) -> None:
    run_passes(mamba, [TiedEmbedding()])
    lower(mamba, make_plan("int8", "kernel", library=True), tmp_path / "packed")
    found, scan = kinds(mamba), first(mamba, SELECTIVE_SCAN)

    assert found == {"PackedGather": 1, "PackedLinear": 13, "CausalConv": 3, SELECTIVE_SCAN: 3}
    assert scan.overload == ""
    assert scan.inputs[2].const_value.numpy().max() == 0
    assert scan.inputs[5] is scan.inputs[6] and scan.attributes.get_int("c_start") > scan.attributes.get_int("b_start")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_operators_of_ours_it_is_a_loop_in_standard_ones(
    family: str, checkpoint: Callable[[str], Path]
) -> None:
    model = build_graph(checkpoint(family))
    run_passes(model, [LoopTokens()])
    found = kinds(model)

    assert found["Scan"] > 0 and found["LinearAttention"] == found[SELECTIVE_SCAN] == 0
    assert set(model.graph.opset_imports) == {"", "com.microsoft"} and not model.functions
    run_passes(model, [LoopTokens()])
    assert kinds(model) == found


def _other_scale(model: ir.Model) -> None:
    first(model, "LinearAttention").attributes["scale"] = ir.AttrFloat32("scale", 0.5)


def _other_rule(model: ir.Model) -> None:
    first(model, "LinearAttention").attributes["update_rule"] = ir.AttrString("update_rule", "linear")


def _other_heads(model: ir.Model) -> None:
    first(model, "LinearAttention").attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 1)


def _with_beta(model: ir.Model) -> None:
    node = first(model, "LinearAttention")
    node.resize_inputs(6)
    node.replace_input_with(5, node.inputs[4])


def _relu_step(model: ir.Model) -> None:
    first(model, "Softplus").op_type = "Relu"


def _rate_is_positive(model: ir.Model) -> None:
    first(model, "Neg").op_type = "Abs"


def _step_is_read(model: ir.Model) -> None:
    model.graph.outputs.append(first(model, "Softplus").outputs[0])


def _value_of_another_step(model: ir.Model) -> None:
    value = first(model, "LinearAttention").inputs[2].producer()
    other = next(v for v in value.inputs if v.producer().op_type != "Softplus")
    value.replace_input_with(value.inputs.index(next(v for v in value.inputs if v is not other)), other)


def _no_skip(model: ir.Model) -> None:
    first(model, "LinearAttention").outputs[0].uses()[0].node.op_type = "Sub"


def _repeated_twice(model: ir.Model) -> None:
    key = first(model, "LinearAttention").inputs[1].producer()
    key.inputs[0].producer().inputs[1].const_value = ir.tensor([2, 1, 192, 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_scale, "another scale"),
        (_other_rule, "another update rule"),
        (_other_heads, "heads of queries and keys differ"),
        (_with_beta, "more or fewer inputs or outputs"),
        (_relu_step, "comes of Relu, not of Softplus"),
        (_rate_is_positive, "comes of Abs, not of Neg"),
        (_step_is_read, "is read elsewhere"),
        (_value_of_another_step, "is no multiple of"),
        (_no_skip, "nothing is added to the scan"),
    ],
)
def test_a_recurrence_that_differs_is_left_alone_with_its_reason(
    mamba: ir.Model, change: Callable[[ir.Model], None], reason: str
) -> None:
    change(mamba)
    fuse = FuseSelectiveScan()
    run_passes(mamba, [fuse])

    assert kinds(mamba)[SELECTIVE_SCAN] == 2 and kinds(mamba)["LinearAttention"] == 1
    assert [reason in text for text in fuse.unlike.values()] == [True]


def test_a_scan_that_others_read_too_keeps_its_gate_apart(mamba: ir.Model) -> None:
    total = first(mamba, "LinearAttention").outputs[0].uses()[0].node
    mamba.graph.outputs.append(total.outputs[0])
    run_passes(mamba, [FuseSelectiveScan()])

    assert [n.overload for n in mamba.graph if n.op_type == SELECTIVE_SCAN] == ["", GATED, GATED]


def test_a_recurrence_of_mamba2_is_left_alone(checkpoint: Callable[[str], Path]) -> None:
    model = build_graph(checkpoint("mamba2"))
    fuse = FuseSelectiveScan()
    run_passes(model, [fuse])

    assert kinds(model)["LinearAttention"] == 3
    assert set(fuse.unlike.values()) == {"more than a channel a head"}


@needs_library
@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_agrees_with_transformers(weights: Any, family: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    checkpoint = save_tiny(tmp_path / "checkpoint", family)
    manifest = export_checkpoint(checkpoint, bundle, weights=weights, lowering="kernel")  # raises where they differ

    assert max(manifest.parity["max_abs_error"].values()) < 1e-4
    assert SELECTIVE_SCAN in kinds(ir.load(bundle / "model.onnx"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_agrees_without_the_library(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    checkpoint = save_tiny(tmp_path / "checkpoint", family)
    manifest = export_checkpoint(checkpoint, bundle, weights="int8", lowering="kernel", library=False)

    assert max(Manifest.read(bundle).parity["max_abs_error"].values()) < 1e-4
    assert manifest.libraries == {} and SELECTIVE_SCAN in kinds(ir.load(bundle / "model.onnx"))
