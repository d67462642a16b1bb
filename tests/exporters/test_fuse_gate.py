"""Gates and functions inside products: which graphs become what, what is left alone, that the logits stay."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from stored_graphs import LIBRARY, session_of, stored

from edgeslim.exporters.graph import build_graph
from edgeslim.exporters.packed_nodes import matrix_of, operand
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.fuse_gate import FuseGate, gated_parts
from edgeslim.exporters.passes.fuse_norm import FuseNorm
from edgeslim.exporters.passes.fuse_sums import FuseSums
from edgeslim.exporters.passes.join_linears import JoinLinears
from edgeslim.exporters.passes.packed_linears import PackedLinears
from edgeslim.runtime.graph_file import read_graph
from edgeslim.runtime.native_session import NativeSession
from edgeslim.runtime.session import OrtSession

needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="no kernel library: edgeslim was installed without a compiler"
)
TOLERANCE = 1e-5  # float32 sums in another order, values of order 1
B, T, H, M = 2, 3, 24, 40
Line = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]
GATE_AND_UP: list[Line] = [("MatMul", ["x", "G"], ["g"], {}), ("MatMul", ["x", "U"], ["u"], {})]
DOWN: Line = ("MatMul", ["h", "D"], ["y"], {})
FAMILIES = {
    "gemma2": ("gelu_tanh", {"Gelu": 3, "Mul": 3, "PackedLinear": 3}),
    "gemma3_text": ("gelu_tanh", {"Gelu": 3, "Mul": 3, "PackedLinear": 3}),
    "zamba2": ("gelu", {"Gelu": 3, "Mul": 3, "Split": 3, "PackedLinear": 0}),  # gate and value are one product there
    "gpt2": ("gelu_tanh", {"Gelu": 3, "PackedLinear": 0}),
    "phi": ("gelu_tanh", {"Gelu": 3, "PackedLinear": 0}),
    "gpt_neox": ("gelu", {"Gelu": 3, "PackedLinear": 0}),
    "opt": ("relu", {"Relu": 3, "PackedLinear": 0}),
    "nemotron_h": ("relu_squared", {"Relu": 2, "Mul": 2, "PackedLinear": 0}),
}
"""Function, and the nodes that a graph loses, of families that have another function than silu."""


def model_of(lines: Sequence[Line], outputs: Sequence[str] = ("y",)) -> ir.Model:
    """A model of x [B, T, H] with matrices G, U [H, M], V [H, 2 M] and D [M, H]; a line is (operator, inputs, outputs,
    attributes)."""
    rng = np.random.default_rng(0)
    shapes = {"G": (H, M), "U": (H, M), "V": (H, 2 * M), "D": (M, H), "columns": (M,), "norm": (M,)}
    constants = {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"sizes": np.array([M, M]), "square": np.array(2, np.float32)}
    graph = helper.make_graph(
        [helper.make_node(op, inputs, made, name=made[0], **attributes) for op, inputs, made, attributes in lines],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [B, "T", H])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def fused(model: ir.Model) -> ir.Model:
    return run_passes(model, [PackedLinears(), FuseNorm(), FuseGate()])


def outputs(model: ir.Model, *, library: bool = False) -> list[np.ndarray]:
    session = session_of(model, library=library)
    x = 2 * np.random.default_rng(1).standard_normal((B, T, H)).astype(np.float32)
    return [np.asarray(y) for y in session.run(None, {"x": x})]


def compare(lines: Sequence[Line], model: ir.Model, scratch: Path) -> None:
    """Assert that the lowered `model` computes what `lines` do, by the bodies and by the kernels."""
    expected = outputs(model_of(lines))
    stored(model, scratch)
    for library in (False, True) if LIBRARY is not None else (False,):
        for found, wanted in zip(outputs(model, library=library), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def functions(model: ir.Model) -> list[str]:
    return [node.attributes.get_string("function", "silu") for node in model.graph if "function" in node.attributes]


FUNCTION_LINES: dict[str, list[Line]] = {
    "silu": [("Sigmoid", ["g"], ["s"], {}), ("Mul", ["s", "g"], ["a"], {})],
    "gelu": [("Gelu", ["g"], ["a"], {})],
    "gelu_tanh": [("Gelu", ["g"], ["a"], {"approximate": "tanh"})],
    "relu": [("Relu", ["g"], ["a"], {})],
    "relu_squared": [("Relu", ["g"], ["r"], {}), ("Mul", ["r", "r"], ["a"], {})],
}


@pytest.mark.parametrize("function", FUNCTION_LINES)
@pytest.mark.parametrize("order", [["a", "u"], ["u", "a"]], ids="-".join)
def test_a_gate_moves_into_the_product_and_both_before_it_become_one(
    function: str, order: list[str], tmp_path: Path
) -> None:
    lines = [*GATE_AND_UP, *FUNCTION_LINES[function], ("Mul", order, ["h"], {}), DOWN]
    model = fused(model_of(lines))
    run_passes(model, [JoinLinears()])

    first, second = model.graph  # and nothing else
    assert matrix_of(first).n == 2 * M
    assert operand(second, "x") is operand(second, "gate") is first.outputs[0]
    assert (second.attributes.get_int("gate_start"), second.attributes.get_int("x_start")) == (0, M)
    assert functions(model) == ([] if function == "silu" else [function])  # a gate goes through silu by itself
    assert not FuseGate()(model).modified
    compare(lines, model, tmp_path)


@pytest.mark.parametrize("function", FUNCTION_LINES)
def test_a_function_without_a_gate_moves_into_the_product(function: str, tmp_path: Path) -> None:
    lines = [GATE_AND_UP[0], *FUNCTION_LINES[function], ("MatMul", ["a", "D"], ["y"], {})]
    model = fused(model_of(lines))

    assert [node.op_type for node in model.graph] == ["PackedLinear"] * 2
    assert functions(model) == [function]
    assert not FuseGate()(model).modified
    compare(lines, model, tmp_path)


@pytest.mark.parametrize("gated", [True, False])
def test_columns_of_one_product_are_read_in_place_and_a_norm_comes_after(gated: bool, tmp_path: Path) -> None:
    lines: list[Line] = [
        ("MatMul", ["x", "V"], ["v"], {}),
        ("Split", ["v", "sizes"], ["u", "g"], {"axis": -1}),
        ("Gelu", ["g"], ["a"], {}),
        *([("Mul", ["u", "a"], ["h0"], {})] if gated else []),
        ("RMSNormalization", ["h0" if gated else "a", "norm"], ["h"], {"axis": -1, "epsilon": 0.01}),
        DOWN,
    ]
    model = fused(model_of(lines))

    assert [node.op_type for node in model.graph] == ["PackedLinear"] * 2
    assert list(model.graph)[1].attributes.get_int("gate_start" if gated else "x_start") == M
    compare(lines, model, tmp_path)


@pytest.mark.parametrize(
    ("lines", "outputs_too", "left"),
    [
        ([*GATE_AND_UP, *FUNCTION_LINES["gelu"], ("Mul", ["u", "a"], ["h"], {}), DOWN], ["h"], ["Gelu", "Mul"]),
        ([*GATE_AND_UP, *FUNCTION_LINES["gelu"], ("Mul", ["u", "a"], ["h"], {}), DOWN], ["a"], ["Gelu", "Mul"]),
        (
            [*GATE_AND_UP, *FUNCTION_LINES["relu_squared"], ("Mul", ["u", "a"], ["h"], {}), DOWN],
            ["r"],
            ["Relu", "Mul", "Mul"],
        ),
        ([GATE_AND_UP[0], *FUNCTION_LINES["gelu"], ("MatMul", ["a", "D"], ["y"], {})], ["a"], ["Gelu"]),
        ([GATE_AND_UP[0], *FUNCTION_LINES["gelu"], ("Mul", ["columns", "a"], ["h"], {}), DOWN], [], ["Gelu", "Mul"]),
        ([*GATE_AND_UP, ("Tanh", ["g"], ["a"], {}), ("Mul", ["u", "a"], ["h"], {}), DOWN], [], ["Tanh", "Mul"]),
        ([GATE_AND_UP[0], ("Relu", ["g"], ["r"], {}), ("Pow", ["r", "square"], ["h"], {}), DOWN], [], ["Relu", "Pow"]),
    ],
    ids=["product-read", "gate-read", "root-read", "function-read", "columns", "tanh", "power"],
)
def test_what_others_read_and_what_is_no_such_gate_stays(
    lines: list[Line], outputs_too: list[str], left: list[str], tmp_path: Path
) -> None:
    model = model_of(lines, ["y", *outputs_too])
    expected = outputs(model)
    fused(model)

    assert [node.op_type for node in model.graph if node.op_type != "PackedLinear"] == left
    assert functions(model) == []
    for found, wanted in zip(outputs(stored(model, tmp_path)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_a_second_function_stays_outside(tmp_path: Path) -> None:
    lines: list[Line] = [
        *GATE_AND_UP,
        *FUNCTION_LINES["gelu"],
        ("Relu", ["u"], ["b"], {}),
        ("Mul", ["b", "a"], ["h"], {}),
        DOWN,
    ]
    model = fused(model_of(lines))

    kinds = Counter(node.op_type for node in model.graph)
    assert kinds["Mul"] == 0 and kinds["Relu"] + kinds["Gelu"] == 1
    compare(lines, model, tmp_path)


def test_a_scan_is_offered_no_gate_but_silu() -> None:
    for function, lines in FUNCTION_LINES.items():
        model = model_of([*GATE_AND_UP, *lines, ("Mul", ["u", "a"], ["h"], {}), DOWN])
        values = {value.name: value for node in model.graph for value in node.outputs}
        wanted = (values["u"], values["g"]) if function == "silu" else None
        assert gated_parts(values["h"]) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_families_lose_their_functions_and_the_second_product_of_a_gate(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    function, lost = FAMILIES[family]
    before, after = (run_passes(build_graph(checkpoint(family)), [PackedLinears(lookups=False)]) for _ in range(2))
    run_passes(before, [FuseNorm(), FuseSums(), JoinLinears()])
    run_passes(after, [FuseNorm(), FuseGate(), FuseSums(), JoinLinears()])
    counts = [Counter(node.op_type for node in model.graph) for model in (before, after)]

    assert {op: counts[0][op] - counts[1][op] for op in lost} == lost
    assert set(functions(after)) == {function} and len(functions(after)) == next(iter(lost.values()))


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_families_stay(bundle: Callable[..., Path], family: str) -> None:
    packed, plain = bundle(family, "fp16", "kernel"), bundle(family, "fp16")
    graph = read_graph(packed / "model.onnx")

    assert not {"Gelu", "Relu"} & {node.op_type for node in graph.nodes}
    sessions = (OrtSession(plain, threads=1), OrtSession(packed, threads=1), NativeSession(packed, threads=1))
    for piece in (list(range(3, 20)), [11, 9], [33]):
        expected, *found = (session.feed(np.array([piece], np.int64)) for session in sessions)
        for logits in found:
            np.testing.assert_allclose(logits, expected, atol=TOLERANCE)
