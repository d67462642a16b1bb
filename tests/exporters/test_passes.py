"""Each pass: what it finds, what it leaves alone and why, that the numbers stay, that a second run changes nothing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgeslim.errors import ExportError
from edgeslim.exporters.graph import build_graph
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.last_logits import LastLogits, find_head
from edgeslim.exporters.passes.quantize_linears import SAME_BYTES, QuantizeLinears, constant_matrix, set_accuracy_level
from edgeslim.exporters.passes.sliding_windows import SlidingWindows
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding, transposed_weight

TOLERANCE = 1e-5  # float32 sums in another order, values of order 1
V, H, T = 37, 24, 5
rng = np.random.default_rng(0)
EMBEDDING = rng.standard_normal((V, H)).astype(np.float32)
LINEAR = rng.standard_normal((H, H)).astype(np.float32)
Node = tuple[str, str, Sequence[str], str, Mapping[str, object]]


def model_of(nodes: Sequence[Node], constants: Mapping[str, np.ndarray]) -> ir.Model:
    """A model from input_ids [B, T] to logits; a node is (domain, operator, inputs, output, attributes)."""
    ids = ir.Value(name="input_ids", shape=ir.Shape(["batch", "tokens"]), type=ir.TensorType(ir.DataType.INT64))
    values = {"input_ids": ids}
    for name, array in constants.items():
        tensor = ir.tensor(array, name=name)
        values[name] = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    built = []
    for domain, operator, inputs, output, attributes in nodes:
        node = ir.node(operator, [values[name] for name in inputs], dict(attributes), domain=domain, name=f"n_{output}")
        node.outputs[0].name = output
        values[output] = node.outputs[0]
        built.append(node)
    values["logits"].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [ids],
        [values["logits"]],
        nodes=built,
        initializers=[values[name] for name in constants],
        opset_imports={"": 24, "com.microsoft": 1},
        name="test",
    )
    return ir.Model(graph, ir_version=11)


def tied_model(perm: Sequence[int] = (1, 0)) -> ir.Model:
    return model_of(
        [
            ("", "Gather", ["E", "input_ids"], "x", {"axis": 0}),
            ("", "MatMul", ["x", "W"], "y", {}),
            ("", "RMSNormalization", ["y", "scale"], "n", {"axis": -1}),
            ("", "Transpose", ["E"], "Et", {"perm": list(perm)}),
            ("", "MatMul", ["n", "Et"], "logits", {}),
        ],
        {"E": EMBEDDING, "W": LINEAR, "scale": np.ones(H, np.float32)},
    )


def run(model: ir.Model, ids: np.ndarray | None = None) -> np.ndarray:
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens = np.arange(T)[None] if ids is None else ids
    return np.asarray(session.run(["logits"], {"input_ids": tokens})[0])


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def changes(model: ir.Model, step: ir.passes.InPlacePass) -> bool:
    return step(model).modified


# Tied embedding


def test_a_transposed_embedding_is_read_in_place() -> None:
    model = tied_model()
    before = run(model)

    assert changes(model, TiedEmbedding())
    assert operators(model) == ["Gather", "MatMul", "RMSNormalization", "FusedMatMul"]
    np.testing.assert_allclose(run(model), before, atol=TOLERANCE)
    assert not changes(model, TiedEmbedding())


def test_a_transpose_of_a_computed_value_is_left_alone() -> None:
    model = model_of(
        [
            ("", "Gather", ["E", "input_ids"], "x", {"axis": 0}),
            ("", "Add", ["E", "E"], "E2", {}),
            ("", "Transpose", ["E2"], "Et", {"perm": [1, 0]}),
            ("", "MatMul", ["x", "Et"], "logits", {}),
        ],
        {"E": EMBEDDING},
    )
    assert not changes(model, TiedEmbedding())
    assert transposed_weight(next(n for n in model.graph if n.op_type == "MatMul")) is None


# Last logits


def test_only_the_last_position_reaches_norm_and_head() -> None:
    model = tied_model()
    before = run(model)

    assert changes(model, LastLogits())
    assert operators(model).index("Gather", 1) < operators(model).index("RMSNormalization")
    after = run(model)
    assert after.shape == (1, 1, V)
    np.testing.assert_allclose(after, before[:, -1:], atol=TOLERANCE)
    assert not changes(model, LastLogits())
    np.testing.assert_allclose(run(model), after)


def test_what_follows_the_last_mixing_of_positions_is_of_one_position() -> None:
    model = model_of(
        [
            ("", "Gather", ["E", "input_ids"], "x", {"axis": 0}),
            ("", "Softmax", ["x"], "mixed", {"axis": 1}),
            ("", "MatMul", ["mixed", "U"], "up", {}),
            ("", "Sigmoid", ["up"], "gate", {}),
            ("", "Mul", ["up", "gate"], "silu", {}),
            ("", "MatMul", ["silu", "D"], "down", {}),
            ("com.microsoft", "SkipSimplifiedLayerNormalization", ["down", "x", "scale"], "n", {}),
            ("", "MatMul", ["n", "Et"], "logits", {}),
        ],
        {
            "E": EMBEDDING,
            "Et": EMBEDDING.T.copy(),
            "U": EMBEDDING.T.copy(),
            "D": EMBEDDING.copy(),
            "scale": np.ones(H, np.float32),
        },
    )
    for node in model.graph:
        if node.op_type in ("MatMul", "Sigmoid"):
            node.outputs[0].shape = ir.Shape([1, "T", H])
    before = run(model)
    assert changes(model, LastLogits())

    assert operators(model)[:4] == ["Gather", "Softmax", "Gather", "MatMul"]
    assert operators(model).count("Gather") == 3  # of token ids, of what was mixed, of the residual
    np.testing.assert_allclose(run(model), before[:, -1:], atol=TOLERANCE)


def test_a_norm_with_other_readers_stays_and_the_head_is_cut() -> None:
    model = model_of(
        [
            ("", "Gather", ["E", "input_ids"], "x", {"axis": 0}),
            ("", "RMSNormalization", ["x", "scale"], "n", {"axis": -1}),
            ("", "MatMul", ["n", "Et"], "a", {}),
            ("", "Tanh", ["a"], "logits", {}),
            ("", "Tanh", ["n"], "other", {}),
        ],
        {"E": EMBEDDING, "Et": EMBEDDING.T.copy(), "scale": np.ones(H, np.float32)},
    )
    before = run(model)
    changes(model, LastLogits())

    assert operators(model)[:4] == ["Gather", "RMSNormalization", "Gather", "MatMul"]
    np.testing.assert_allclose(run(model), before[:, -1:], atol=TOLERANCE)


def test_logits_without_a_head_are_refused_with_the_reason() -> None:
    model = model_of(
        [("", "Gather", ["E", "input_ids"], "x", {"axis": 0}), ("", "Softmax", ["x"], "logits", {})], {"E": EMBEDDING}
    )
    with pytest.raises(ExportError, match="logits come from Softmax"):
        find_head(model.graph)


# Quantized linears


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tie_first", [True, False])
def test_packed_products_compute_with_the_rounded_weights(bits: int, tie_first: bool) -> None:
    from edgeslim.exporters.packing import round_to_blocks

    reference = tied_model()
    rounded = {
        "E": round_to_blocks(EMBEDDING, bits, 128),
        "W": round_to_blocks(LINEAR.T, bits, 128).T.copy(),
    }
    for name, array in rounded.items():
        reference.graph.initializers[name].const_value = ir.tensor(array, name=name)
    model = tied_model()
    if tie_first:
        run_passes(model, [TiedEmbedding()])

    assert changes(model, QuantizeLinears(bits))
    # A head that still transposes is computed from the embedding and stays as it is.
    assert operators(model).count("MatMulNBits") == (2 if tie_first else 1)
    set_accuracy_level(model, 0)
    if tie_first:
        np.testing.assert_allclose(run(model), run(reference), atol=TOLERANCE * 10)
    assert not changes(model, QuantizeLinears(bits))


def test_a_tied_embedding_shares_the_heads_codes_and_scales() -> None:
    model = tied_model()
    run_passes(model, [TiedEmbedding(), QuantizeLinears(4)])
    lookup = next(node for node in model.graph if node.op_type == "GatherBlockQuantized")
    head = find_head(model.graph)

    assert lookup.inputs[2] is head.inputs[2]
    assert lookup.inputs[0] is not None and head.inputs[1] is not None
    assert lookup.inputs[0].metadata_props[SAME_BYTES] == head.inputs[1].name
    assert "E" not in model.graph.initializers


def test_products_of_two_computed_values_are_not_packed() -> None:
    model = tied_model()
    node = next(n for n in model.graph if n.name == "n_logits")

    assert constant_matrix(node) is None  # its right side is a Transpose's output
    assert constant_matrix(next(n for n in model.graph if n.name == "n_y")) is not None


def test_one_token_with_large_activations_leaves_the_others_alone() -> None:
    """Why int8 is not DynamicQuantizeMatMul, whose one scale for all tokens would round the others away."""
    model = tied_model()
    run_passes(model, [TiedEmbedding()])
    table = EMBEDDING.copy()
    table[0] *= 1000
    model.graph.initializers["E"].const_value = ir.tensor(table, name="E")
    run_passes(model, [QuantizeLinears(8)])

    beside = run(model, np.array([[0, 1, 2]]))[0, 1:]
    alone = np.stack([run(model, np.array([[i]]))[0, 0] for i in (1, 2)])
    np.testing.assert_allclose(beside, alone, rtol=1e-4, atol=1e-4)


# Windows


def test_windows_are_set_by_layer(checkpoint: Callable[[str], Path]) -> None:
    model = build_graph(checkpoint("gemma2"))
    windows = [n.attributes.get_int("local_window_size", -1) for n in model.graph if n.op_type == "GroupQueryAttention"]

    assert windows == [8, -1, 8]
    assert not changes(model, SlidingWindows([8, None, 8]))
    assert changes(model, SlidingWindows([None, None, None]))


def test_a_window_without_attention_to_hold_it_is_refused() -> None:
    model = tied_model()
    model.graph.outputs[0].name = "present.0.key"

    with pytest.raises(ExportError, match="a window of 8 needs GroupQueryAttention, found MatMul"):
        run_passes(model, [SlidingWindows([8])])
    assert not changes(model, SlidingWindows([None]))


def test_a_failing_pass_is_named_with_those_before_it() -> None:
    model = model_of([("", "Gather", ["E", "input_ids"], "logits", {"axis": 0})], {"E": EMBEDDING})

    with pytest.raises(ExportError, match="graph pass LastLogits after TiedEmbedding: cannot find the head"):
        run_passes(model, [TiedEmbedding(), LastLogits()])
