"""Norms of queries and keys inside attention: which graphs become what, what is left alone, that the logits stay."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file, save_file
from stored_graphs import LIBRARY, session_of, stored

from edgeslim.exporters.graph import build_graph
from edgeslim.exporters.packed_nodes import linear_nodes, matrix_of, operand
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.fuse_attention import FuseAttention
from edgeslim.exporters.passes.fuse_norm import FuseNorm
from edgeslim.exporters.passes.fuse_query_norms import FuseQueryNorms
from edgeslim.exporters.passes.fuse_sums import FuseSums
from edgeslim.exporters.passes.join_linears import JoinLinears
from edgeslim.exporters.passes.packed_linears import PackedLinears
from edgeslim.exporters.passes.split_skip_norms import SplitSkipNorms
from edgeslim.runtime.inspection import inspect_bundle
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.native_session import NativeSession
from edgeslim.runtime.session import OrtSession

needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="no kernel library: edgeslim was installed without a compiler"
)
TOLERANCE = 1e-5  # float32 sums in another order; logits are between 1 and 5
ATTENTION, OURS = "com.microsoft::GroupQueryAttention", "edgeslim::GroupQueryAttention:norms"
LOST = {
    "qwen3": {"Reshape": 4, "RMSNormalization": 2, "Concat": 0},
    "olmo2": {"Reshape": 0, "RMSNormalization": 2, "Concat": 0},
    "gemma3_text": {"Reshape": 4, "RMSNormalization": 2, "Concat": 1},
    "lfm2": {"Reshape": 4, "RMSNormalization": 2, "Concat": 1},
}
"""Nodes that a layer with attention loses, beside two of its products and the attention of com.microsoft."""
LAYERS = {"lfm2": 1}  # with attention; others 3
PASSES = (FuseAttention(), FuseQueryNorms(), JoinLinears())
Checkpoint = Callable[[str], Path]


def packed_graph(checkpoint: Path) -> ir.Model:
    """The graph of a checkpoint lowered up to where attention is to take its norms."""
    model = build_graph(checkpoint)
    run_passes(model, [PackedLinears(lookups=False), SplitSkipNorms(), FuseNorm(), FuseSums()])
    return model


def counts(model: ir.Model) -> Counter[str]:
    names = [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph]
    overloads = [f"{name}:{node.overload}" for name, node in zip(names, model.graph, strict=True) if node.overload]
    return Counter([*names, *overloads])


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]


def logits(model: ir.Model, *, library: bool = False) -> list[np.ndarray]:
    """Logits of a prompt of 21 tokens and of two single tokens after it."""
    session = session_of(model, library=library)
    names = [output.name for output in session.get_outputs()]
    states: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            dims = [d if isinstance(d, int) else int(d == "batch") for d in value.shape]
            states[value.name] = np.zeros(dims, np.float32)
    found, tokens, past = [], np.random.default_rng(3).integers(3, 300, 23), 0
    for piece in (tokens[:21], tokens[21:22], tokens[22:]):
        positions = np.arange(past, past + len(piece))[None]
        past += len(piece)
        given = {"input_ids": piece[None], "attention_mask": np.ones((1, past), np.int64), "position_ids": positions}
        wanted = {value.name for value in session.get_inputs()}
        feed = {name: array for name, array in {**given, **states}.items() if name in wanted}
        made = dict(zip(names, session.run(None, feed), strict=True))
        states = {name: made[name.replace("past_key_values", "present")] for name in states}
        found.append(np.asarray(made["logits"]))
    return found


def distance(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", LOST)
def test_attention_takes_the_norms_and_three_products_become_one(
    checkpoint: Checkpoint, family: str, tmp_path: Path
) -> None:
    expected = logits(build_graph(checkpoint(family)))
    model, layers = packed_graph(checkpoint(family)), LAYERS.get(family, 3)
    before = counts(model)
    run_passes(model, PASSES)
    after = counts(model)

    lost = {**LOST[family], "edgeslim::PackedLinear": 2, ATTENTION: 1, OURS: -1}
    assert {kind: before[kind] - after[kind] for kind in lost} == {kind: layers * n for kind, n in lost.items()}
    assert after["Reshape"] == after["Concat"] == 0
    assert not any(step(model).modified for step in PASSES)
    stored(model, tmp_path)
    assert distance(logits(model), expected) <= TOLERANCE
    if LIBRARY is not None:
        assert distance(logits(model, library=True), expected) <= TOLERANCE


def test_matrices_that_cannot_be_one_are_put_together_behind_their_products(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = packed_graph(checkpoint("qwen3"))
    run_passes(model, [FuseAttention(), FuseQueryNorms(), JoinLinears(lambda first, second: first.n == second.n)])

    assert counts(model)["Concat"] == counts(model)[OURS] == 3
    assert distance(logits(stored(model, tmp_path)), logits(build_graph(checkpoint("qwen3")))) <= TOLERANCE


def test_products_with_biases_are_joined_with_their_biases(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path, "qwen3", tokenizer=False, attention_bias=True)
    weights = load_file(checkpoint / "model.safetensors")
    biases = {name: torch.randn_like(tensor) for name, tensor in weights.items() if name.endswith("proj.bias")}
    save_file({**weights, **biases}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    model = packed_graph(checkpoint)
    run_passes(model, PASSES)
    joined = [operand(node, "bias") for node in linear_nodes(model.graph) if len(matrix_of(node).names) == 3]

    assert len(biases) == 12
    assert len(joined) == 3 and all(bias is not None and list(bias.shape or []) == [256] for bias in joined)
    assert distance(logits(stored(model, tmp_path)), logits(build_graph(checkpoint))) <= TOLERANCE


def other_epsilon(model: ir.Model, norm: ir.Node) -> None:
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)


def other_reader(model: ir.Model, norm: ir.Node) -> None:
    model.graph.outputs.append(norm.outputs[0])


def other_heads(model: ir.Model, norm: ir.Node) -> None:
    """The norm of pairs of heads: neither of a head nor of all."""
    shape = ir.tensor(np.array([0, 0, -1, 64]), name="pairs")
    value = ir.Value(name="pairs", shape=shape.shape, type=ir.TensorType(shape.dtype), const_value=shape)
    split, weight = norm.inputs[0].producer(), norm.inputs[1]  # type: ignore[union-attr]
    assert split is not None and weight is not None and weight.const_value is not None
    model.graph.register_initializer(value)
    split.replace_input_with(1, value)
    weight.const_value = ir.tensor(np.tile(weight.const_value.numpy(), 2), name=weight.name)
    weight.shape = ir.Shape([64])


def no_norm(model: ir.Model, norm: ir.Node) -> None:
    norm.outputs[0].replace_all_uses_with(norm.inputs[0])  # type: ignore[arg-type]
    model.graph.remove(norm, safe=True)


@pytest.mark.parametrize("change", [other_epsilon, other_reader, other_heads, no_norm])
def test_norms_that_the_operator_cannot_take_stay(
    checkpoint: Checkpoint, change: Callable[[ir.Model, ir.Node], None], tmp_path: Path
) -> None:
    def changed(model: ir.Model) -> ir.Model:
        change(model, next(node for node in model.graph if "layers.0" in (node.name or "") and is_query_norm(node)))
        return model

    model = changed(packed_graph(checkpoint("qwen3")))
    norms = sum(is_query_norm(node) for node in model.graph)
    run_passes(model, PASSES)

    assert counts(model)[OURS] == counts(model)["edgeslim::GroupQueryAttention"] - 1 == 2
    assert sum(is_query_norm(node) for node in model.graph) == norms - 4
    expected = changed(build_graph(checkpoint("qwen3")))
    assert distance(logits(stored(model, tmp_path)), logits(expected)) <= TOLERANCE


def is_query_norm(node: ir.Node) -> bool:
    return node.op_type == "RMSNormalization" and any(part in (node.name or "") for part in ("q_norm", "k_norm"))


@needs_library
def test_a_model_with_such_norms_runs_without_onnx_runtime(bundle: Callable[..., Path]) -> None:
    folder = bundle("qwen3", "int8", "kernel")
    alone, ort = NativeSession(folder, threads=1, onnxruntime=False), OrtSession(folder, threads=1)

    assert inspect_bundle(folder).engine == "native"
    assert [layer.shape for layer in Manifest.read(folder).layers if "q_proj+k_proj+v_proj" in layer.name] == [
        (256, 64)
    ] * 3
    for piece in (list(range(3, 43)), [11, 9], [33], [5]):
        tokens = np.array([piece], np.int64)
        np.testing.assert_array_equal(alone.feed(tokens), ort.feed(tokens))
